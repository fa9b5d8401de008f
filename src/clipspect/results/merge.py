"""New results folders from the rows of old ones: merged, filtered, or with a restored manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

import clipspect
from clipspect.data.find import MANIFEST, RESULTS_MARKER, is_results_folder
from clipspect.errors import ResultsError, UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.files import write_whole
from clipspect.results.finalize import RunTotals, calibrate_rows, finish_run
from clipspect.results.store import OWNED, SCHEMA_VERSION, ResultStore, iterate_rows, read_manifest

OF_THE_SOURCE = ("source",)
"""Settings that may differ between folders with comparable scores."""


@dataclass(frozen=True)
class RowFilter:
    """Filter of images: those with a row that meets all conditions."""

    flagged: bool | None = None
    """True = only flagged images, False = only others."""
    failed: bool | None = None
    """True = only images with an error, False = only others."""
    least: float = 0.0
    """Lowest score."""
    most: float = 1.0
    """Highest score."""
    names: str = "*"
    """Shell pattern of names; * also matches slashes."""

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row matches."""
        if self.failed is not None and (row["error"] is not None) is not self.failed:
            return False
        if self.flagged is not None and row["flag"] is not self.flagged:
            return False
        unlimited = self.least <= 0 and self.most >= 1
        scored = row["score"] is not None and self.least <= row["score"] <= self.most
        return (unlimited or scored) and fnmatchcase(row["path"], self.names)


ALL = RowFilter()


def merge_results(
    folders: Sequence[Path],
    out: Path,
    *,
    choice: RowFilter = ALL,
    methods: Sequence[str] = (),
    prefix: bool = False,
    threshold: float | None = None,
    overwrite: bool = False,
) -> RunTotals:
    """Merge the selected images of some results folders into a new results folder, with its report.

    An image in several folders, identified by name and content, is taken once: one that is in its images' folder before
    one that is gone, a scored one before a failed one, then the latest. Rows of files that are gone are kept and not
    counted. The calibration is kept if the folders agree in it; otherwise the merged images are compared with each
    other.

    Args:
        folders: one or more results folders; a single one may have lost its manifest.
        out: a new folder.
        choice: which images to take.
        methods: which methods to take; empty = those of the folders.
        prefix: put each folder's name before its images' names.
        threshold: flag scores at or above this value, instead of 0.5.
        overwrite: replace results in ``out``.

    Raises:
        UsageError: a method without rows.
        ResultsError: other settings, one name for two contents, ``out`` not writable or not empty, a damaged part.
    """
    if any(out.resolve() == folder.resolve() for folder in folders):
        raise UsageError(f"{out}: is one of the folders themselves; choose a new one")
    if is_results_folder(out) and not overwrite:  # a run would resume there and drop rows to retry them
        raise ResultsError(f"{out}: holds results already; choose a new folder, or pass --overwrite")
    manifests = [_manifest(folder) for folder in folders]
    settings = _common_settings(folders, manifests)
    settings["methods"] = _chosen_methods(settings["methods"], methods)
    winners = _winners(folders, prefix=prefix)
    keys = {key for manifest in manifests for key in manifest.get("calibrations", {})} | {
        *settings["methods"]
    }
    known = {key: _common_calibration(folders, manifests, key) for key in sorted(keys)}
    with ResultStore(out, settings, overwrite=overwrite) as store:
        for number, folder in enumerate(folders):
            for name, rows in _grouped_rows(folder, prefix=prefix):
                taken = [row for row in rows if row["method"] in settings["methods"]]
                if winners[name][0] == number and any(choice.takes(row) for row in taken):
                    for row in taken:
                        store.add({**row, "path": name})
        store.flush()
        return finish_run(
            store,
            None,
            calibrations={method: found for method, found in known.items() if found is not None},
            threshold=threshold,
            present=None,
            levels=_levels(manifests),
            overlays="none",
            csv=False,
            report=True,
            progress=lambda *_: None,
        )


def recover_manifest(out: Path) -> None:
    """Write a manifest for rows without one. Raises ResultsError if there are no rows."""
    manifest = _manifest(out)
    if is_results_folder(out):
        return
    methods = manifest["settings"]["methods"]
    manifest["calibrations"] = {
        m: calibrate_rows(out, m, None).to_dict() for m in methods
    }  # only for the heatmap
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    write_whole(out, out / MANIFEST, text.encode("utf-8", "backslashreplace"))


def _manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest, or one derived from its rows if it has none."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    columns = ["object", "method", "model", "weights"]
    seen = {tuple(row[name] for name in columns) for row in iterate_rows(folder, columns)}
    if not seen:
        raise ResultsError(
            f"{folder}: no results of clipspect there, neither a manifest nor rows; check the path"
        )
    if len({row[:1] + row[2:4] for row in seen}) > 1:
        raise ResultsError(f"{folder}: rows of several runs and no manifest to tell them apart")
    first = dict(zip(columns, next(iter(seen)), strict=True))
    methods = sorted({row[1] for row in seen})
    return {
        "kind": RESULTS_MARKER,
        "schema_version": SCHEMA_VERSION,
        "clipspect": clipspect.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "methods": {method: {} for method in methods},
            **{name: first[name] for name in ("model", "weights", "object")},
            "source": str(folder),
            "set": f"unknown, of {folder.resolve()}",  # never equal to that of another folder
        },
        "files": list(OWNED),
    }


def _common_settings(folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first: dict[str, Any] = manifests[0]["settings"]
    for folder, manifest in zip(folders, manifests, strict=True):
        own = manifest["settings"]
        other = [n for n in sorted({*first, *own} - {*OF_THE_SOURCE}) if first.get(n) != own.get(n)]
        if other:
            raise ResultsError(
                f"{folder}: was made with other settings than {folders[0]} ({', '.join(other)}), so their scores "
                "do not compare; score its images again with the same"
            )
    sources: dict[str, None] = {}  # a set in order of appearance
    for manifest in manifests:
        source = manifest["settings"].get("source", "")
        sources |= dict.fromkeys([source] if isinstance(source, str) else source)
    return {**first, "source": next(iter(sources)) if len(sources) == 1 else list(sources)}


def _chosen_methods(there: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise UsageError(f"no rows of {', '.join(unknown)}; there are: {', '.join(there)}")
    return {name: there[name] for name in (wanted or there)}


def _common_calibration(
    folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]], method: str
) -> Calibration | None:
    """Return the known-good calibration that all folders share; None if none has one.

    Raises:
        ResultsError: calibrations from different known-good images.
    """
    found = [manifest.get("calibrations", {}).get(method) for manifest in manifests]
    calibrations = [Calibration.from_dict(one) if one else None for one in found]
    good = [one if one is not None and one.is_good else None for one in calibrations]
    if not any(good):
        return None
    for folder, one in zip(folders, good, strict=True):
        if one != good[0]:
            raise ResultsError(
                f"{folder}: was judged with another calibration than {folders[0]}; judge both with the same known-good"
                " images, or filter them one by one"
            )
    return good[0]


def _levels(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Calibration]:
    """Return the levels of one image alone that the folders were judged with."""
    found = {m: c for manifest in manifests for m, c in manifest.get("calibrations", {}).items()}
    return {m: Calibration.from_dict(c) for m, c in found.items() if c["rule"] == "shipped level"}


def _grouped_rows(
    folder: Path, *, prefix: bool, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each image's new name and its rows, which are consecutive."""
    for path, rows in groupby(iterate_rows(folder, columns), key=lambda row: row["path"]):
        yield (f"{folder.resolve().name}/{path}" if prefix else path), list(rows)


def _winners(folders: Sequence[Path], *, prefix: bool) -> dict[str, tuple[int, str]]:
    """Return, by name, the folder whose rows are taken, and their content hash."""
    columns = ["path", "content_hash", "error", "finished_at", "missing"]
    best: dict[str, tuple[tuple[bool, bool, Any], int, str]] = {}
    for number, folder in enumerate(folders):
        for name, rows in _grouped_rows(folder, prefix=prefix, columns=columns):
            whole, there = all(row["error"] is None for row in rows), not rows[0]["missing"]
            rank, content = (there, whole, max(row["finished_at"] for row in rows)), rows[0]["content_hash"]
            other = best.get(name)
            if other is not None and (there, whole) == other[0][:2] == (True, True) and other[2] != content:
                raise ResultsError(
                    f"{name}: is one image in {folders[other[1]]} and another one in {folder}; pass --prefix to "
                    "put the folders' names before those of their images"
                )
            if other is None or rank > other[0]:
                best[name] = (rank, number, content)
    return {name: (number, content) for name, (_, number, content) in best.items()}
