"""ResultStore: the rows of a run on disk, safe against kills, and resumed by the next run.

    OUT/manifest.json            description of the run: settings, version, thresholds
    OUT/detections/part-*.parquet    rows, one dataset for pyarrow, pandas or DuckDB
    OUT/overlays, OUT/maps, OUT/masks, OUT/report.html, OUT/detections.csv    generated from the rows

A part is written to a temporary file, synchronized and renamed, so readers only see complete parts.

"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import clipspect
from clipspect.data.find import MANIFEST, RESULTS_MARKER, is_results_folder
from clipspect.errors import ResultsError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.files import STAGING, RunLock, results_errors, write_whole
from clipspect.results.rows import judge_rows, row_path, upgrade_row
from clipspect.results.schema import arrow_schema

SCHEMA_VERSION = 3
"""3: rows hold log-odds layers and a verdict; 2: rows have a ``host``. A resumed run migrates older folders."""
DETECTIONS = "detections"
OVERLAYS = "overlays"
MAPS = "maps"
MASKS = "masks"
REPORT = "report.html"
CSV = "detections.csv"
OWNED = (DETECTIONS, OVERLAYS, MAPS, MASKS, REPORT, CSV)
"""Everything a run writes besides its manifest, and everything that ``overwrite`` removes."""
JUDGED_BY = "clipspect.judged_by"
"""Key of a part's metadata: digest of the calibrations that gave the verdicts of its rows."""
FLUSH_ROWS = 256
FLUSH_SECONDS = 1.0
PARTS_TO_DOUBLE = 64
"""Number of parts after which the write interval doubles, so that long runs create thousands of files."""


def _without_thresholds(manifest: dict[str, Any]) -> dict[str, Any]:
    """Migrate 2 → 3: remove raw thresholds and the set's images; ``set`` and ``good`` were not recorded.

    An unknown set equals no other one.
    """
    settings = {
        name: value for name, value in manifest["settings"].items() if name not in ("company", "maps")
    }
    kept = {k: v for k, v in manifest.items() if k not in ("thresholds", "colour_scales")}
    unknown = f"unknown, of {manifest.get('created')}" if settings.get("set_size") else None
    return {**kept, "settings": {**settings, "set": unknown, "good": None}}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda manifest: manifest,
    2: _without_thresholds,
}
"""Version → function that migrates its manifest to the next version. 1 → 2 changed rows only."""


class ResultStore:
    """Rows of one run in the folder ``out``. Use it as a context manager, in one process at a time."""

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Open or create the folder; remove leftovers of a killed run and rows with an error, which are retried.

        ``settings`` (JSON) identify the run: rows with other settings are never mixed. ``overwrite`` removes existing
        results, and nothing else. ``config`` (JSON) are the detector's options, kept in the manifest.

        Raises ResultsError: not writable, in use by another run, other files or other settings in the folder.
        """
        self.out = out
        self._config = config
        self._settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._rows: list[dict[str, Any]] = []
        self.calibrations: Mapping[str, Calibration] = {}
        """Method → calibration where it is known before scoring; rows are then judged as they are written."""
        self._flushed_at = time.monotonic()
        self._check_ours()
        self._lock = RunLock(out)
        try:
            with results_errors(out):
                shutil.rmtree(out / STAGING, ignore_errors=True)
                self._open_manifest(overwrite)
                (out / DETECTIONS).mkdir(exist_ok=True)
                self._finished = self._prune()
        except BaseException:
            self._lock.release()
            raise
        self._next_part = 1 + max((int(part.stem.split("-")[1]) for part in self.parts()), default=-1)

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write waiting rows, also after an interruption, and release the folder."""
        try:
            self.flush()
        except ResultsError:
            if error is None:  # otherwise keep the first error
                raise
        finally:
            self._lock.release()

    def finished(self) -> set[tuple[str, str]]:
        """Return (path, content hash) of the images that were finished when the store was opened.

        An image is finished if it has a row of every method of the run, none of them with an error.
        """
        return set(self._finished)

    def forget(self, paths: Collection[str]) -> None:
        """Remove the rows of images that have changed. Raises ResultsError."""
        gone = {row_path(path) for path in paths}
        if gone:
            self._finished = self._prune(gone)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row. Rows are written every 256 rows or every second, later every few seconds.

        Raises ResultsError.
        """
        self._rows.append(dict(row))
        patience = FLUSH_SECONDS * (1 + self._next_part // PARTS_TO_DOUBLE)
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= patience:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows as a new part. Raises ResultsError and keeps the rows waiting."""
        if self._rows:
            part = self.out / DETECTIONS / f"part-{self._next_part:06d}.parquet"
            judge_rows(self._rows, self.calibrations)
            self.write_part(part, self._rows, digest_of(self.calibrations) if self.calibrations else None)
            self._next_part += 1
            self._rows = []
        self._flushed_at = time.monotonic()

    def parts(self) -> list[Path]:
        """Return the parts on disk, in write order."""
        return sorted((self.out / DETECTIONS).glob("part-*.parquet"))

    def write_part(self, part: Path, rows: Sequence[Mapping[str, Any]], judged_by: str | None = None) -> None:
        """Write or replace a part atomically. Raises ResultsError.

        Args:
            part: path of the part.
            rows: of the part.
            judged_by: digest of the calibrations that gave the rows' verdicts; kept in the part.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not (self.out / MANIFEST).is_file():
            raise ResultsError(f"{self.out}: was removed while it was written; run the same command again")
        # encode in memory first (a few MB), so that a full disk raises a plain OSError
        buffer = pa.BufferOutputStream()
        table = pa.Table.from_pylist(list(rows), schema=arrow_schema())
        if judged_by is not None:
            table = table.replace_schema_metadata({JUDGED_BY: judged_by})
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        write_whole(self.out, part, buffer.getvalue())

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says."""
        return read_manifest(self.out)

    def update_manifest(self, **entries: Any) -> None:
        """Set entries of manifest.json. Raises ResultsError."""
        self._write_manifest({**self.manifest, **entries})

    def _check_ours(self) -> None:
        """Create the folder, or check that it contains only results."""
        if self.out.exists() and not self.out.is_dir():
            raise ResultsError(f"{self.out}: is a file; results need a folder, choose another name")
        with results_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            strange = [entry.name for entry in self.out.iterdir() if not entry.name.startswith(".")]
        if strange and not is_results_folder(self.out):
            raise ResultsError(
                f"{self.out}: holds other files ({sorted(strange)[0]} …) and no results of clipspect; "
                "choose an empty or a new folder"
            )

    def _open_manifest(self, overwrite: bool) -> None:
        if is_results_folder(self.out):
            before = None if overwrite else self.manifest
            if before is not None and self.parts():
                self._compare(before)
                self._migrate()
                return
            # without rows there is nothing to protect: keep no settings of a run that failed on its options
            for name in OWNED:
                _remove(self.out / name)
        self._write_manifest(
            {
                "kind": RESULTS_MARKER,
                "schema_version": SCHEMA_VERSION,
                "clipspect": clipspect.__version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": self._settings,
                "config": self._config,
                "files": list(OWNED),
            }
        )

    def _compare(self, manifest: Mapping[str, Any]) -> None:
        remedy = f"choose another folder, such as --out {self.out.name}-2, or pass --overwrite to replace the results"
        there = manifest.get("settings", {})
        names = sorted({*there, *self._settings})
        other = [name for name in names if there.get(name) != self._settings.get(name)]
        if other == ["set"]:
            raise ResultsError(
                f"{self.out}: the images of the set have changed since this run began, and every score depends on"
                " them; pass --overwrite to score all images again, or choose another folder"
            )
        if other:
            changes = ", ".join(_changes(there, self._settings))
            raise ResultsError(f"{self.out}: holds a run with other settings: {changes}; {remedy}")

    def _migrate(self) -> None:
        """Rewrite parts of an earlier version, then the manifest; after a kill the next run repeats this."""
        if read_manifest_as_it_is(self.out)["schema_version"] == SCHEMA_VERSION:
            return
        for part in self.parts():
            self.write_part(part, read_rows(part))
        self._write_manifest(self.manifest)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        write_whole(self.out, self.out / MANIFEST, text.encode("utf-8", "backslashreplace"))

    def _prune(self, gone: Collection[str] = ()) -> set[tuple[str, str]]:
        """Drop rows with an error, rows of ``gone`` or incomplete images, and repeated rows.

        Returns the finished images that remain.
        """
        columns = ["path", "content_hash", "method", "error"]
        methods: dict[str, set[str]] = {}
        for row in iterate_rows(self.out, columns):
            if row["error"] is None:
                methods.setdefault(row["path"], set()).add(row["method"])
        whole = {path for path, done in methods.items() if len(done) == len(self._settings["methods"])}
        whole -= set(gone)
        finished: set[tuple[str, str]] = set()
        seen: set[tuple[str, str]] = set()
        for part in self.parts():
            keep = []
            for row in read_rows(part, columns):
                key = (row["path"], row["method"])
                stays = row["error"] is None and row["path"] in whole and key not in seen
                keep.append(stays)
                if stays:
                    seen.add(key)
                    finished.add((row["path"], row["content_hash"]))
            if not any(keep):
                part.unlink()
            elif not all(keep):
                rows = [row for row, stays in zip(read_rows(part), keep, strict=True) if stays]
                self.write_part(part, rows)
        return finished


def read_manifest(out: Path) -> dict[str, Any]:
    """Read manifest.json of a results folder, migrated to this version.

    Raises ResultsError if there is none, or if it has a later version.
    """
    manifest = read_manifest_as_it_is(out)
    for version in range(manifest["schema_version"], SCHEMA_VERSION):
        manifest = {**MIGRATIONS[version](manifest), "schema_version": version + 1}
    return manifest


def read_manifest_as_it_is(out: Path) -> dict[str, Any]:
    """Read manifest.json of any version without migration. Raises ResultsError like :func:`read_manifest`."""
    if not is_results_folder(out):
        raise ResultsError(f"{out}: no results of clipspect there; check the path")
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    version = manifest.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ResultsError(
            f"{out}: results of version {version!r}, and this clipspect reads up to {SCHEMA_VERSION}; upgrade "
            "clipspect, or choose another folder"
        )
    return manifest


def read_rows(part: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of one part, all columns or some; a column missing in its version is None.

    Raises ResultsError for a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(columns or arrow_schema().names)
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            stored = set(file.schema_arrow.names)
            is_old = "layers" not in stored
            there = [n for n in dict.fromkeys([*wanted, *(_OLD_COLUMNS if is_old else ())]) if n in stored]
            rows: list[dict[str, Any]] = file.read(columns=there).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(
            f"{part}: damaged ({error}); delete this file and run again, only its images are repeated"
        ) from error
    absent = dict.fromkeys(set(wanted).difference(there))
    if is_old:
        for row in rows:
            upgrade_row(row, row["map_height"], row["map_width"], row["map"])
        return [{name: row.get(name) for name in wanted} for row in rows]
    return [{**row, **absent} for row in rows] if absent else rows


_OLD_COLUMNS = ("score", "map", "map_height", "map_width")
"""Columns that the upgrade of a version 2 row reads."""


def digest_of(calibrations: Mapping[str, Calibration]) -> str:
    """Return a hash of what verdicts depend on besides the rows: calibrations, and the version that applies them."""
    values = {method: one.to_dict() for method, one in calibrations.items()}
    text = json.dumps([clipspect.__version__, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def judged_by(part: Path) -> str | None:
    """Return the digest of the calibrations that gave a part's verdicts; None where it is unknown. Reads the footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = (pq.read_schema(part).metadata or {}).get(JUDGED_BY.encode())
    except (OSError, pa.ArrowException):
        return None  # reading the rows raises the error
    return None if stored is None else str(stored.decode())


def iterate_rows(out: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a results folder one by one, with one part in memory at a time. Raises ResultsError."""
    for part in sorted((out / DETECTIONS).glob("part-*.parquet")):
        yield from read_rows(part, columns)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield in words what differs between two settings: other methods by name, else the settings that changed."""
    names = {*before, *now}
    old_methods, new_methods = (sorted(one.get("methods", {})) for one in (before, now))
    if old_methods != new_methods:
        yield f"methods was {', '.join(old_methods)}, now {', '.join(new_methods)}"
        names -= {"methods", "set", "set_size"}  # the set follows the methods
    for name in sorted(names):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, "" if name == "methods" else f"{within}{name} ")
        elif old != new:
            yield f"{within}{name} was {old!r}, now {new!r}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
