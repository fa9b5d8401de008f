"""One run over a folder: photographs in, rows, overlays and a report out, resumable at any moment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np

from clipspect.detection import Detection, Thresholds
from clipspect.errors import ImageError
from clipspect.images.find import find_photographs
from clipspect.results.files import open_whole
from clipspect.results.maps import write_grey
from clipspect.results.rows import row_path
from clipspect.results.store import MAPS, ResultStore

SHOWN_ERRORS = 20

MapFormat = Literal["none", "png16", "npy"]
OverlayChoice = Literal["all", "flagged", "none"]


class DetectorLike(Protocol):
    """What a run needs of a detector."""

    def settings(self) -> dict[str, Any]:
        """JSON: everything that could change a score, the fingerprint of the weights included."""

    def stream(
        self,
        photographs: Iterable[Path],
        *,
        object: str,
        root: Path | None,
        only: Callable[[Path], bool] | None,
        references: Any,
        templates: Any,
        company: Iterable[Path],
    ) -> Iterator[Detection]:
        """One detection per method and photograph, in order; ``path`` is relative to ``root``.

        ``only`` says which photographs to score; the others, and ``company``, merely belong to the set.
        """


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``detect`` scores photographs, ``finish`` draws and writes what people see."""

    stage: Literal["detect", "finish"]
    done: int
    """Photographs behind us in this stage, kept ones included."""
    total: int
    kept: int
    """Photographs an earlier run had finished."""
    failed: int
    path: str
    """The photograph just done."""


@dataclass(frozen=True)
class RunSummary:
    """What a run has left behind."""

    out: Path
    photographs: int
    computed: int
    """Photographs scored by this run."""
    kept: int
    """Photographs an earlier run had finished and that have not changed since."""
    flagged: int
    """Photographs that any method flags."""
    failed: int
    errors: tuple[tuple[str, str], ...]
    """(path, reason) of the first 20 photographs that failed."""
    warnings: tuple[str, ...]
    thresholds: Mapping[str, Thresholds]
    """By method."""
    seconds: float
    report: Path | None
    csv: Path | None


def run_folder(
    detector: DetectorLike,
    source: Path,
    *,
    object: str,
    out: Path,
    references: Any = None,
    templates: Any = None,
    company: Sequence[Path] = (),
    thresholds: Thresholds | None = None,
    maps: MapFormat = "none",
    overlays: OverlayChoice = "all",
    csv: bool = False,
    report: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Score the photographs of ``source`` (a folder or one file) into the results folder ``out``.

    Photographs that an earlier run with the same settings has finished, told by path and content, are kept. A
    photograph that fails becomes a row with an error, tried again by the next run. Without ``thresholds``
    they are guessed from the scores of the run. Memory does not grow with the number of photographs.
    ``references`` and ``templates`` go to the detector; their ``digest`` is part of the run's settings.
    ``company`` are photographs that belong to the set beside those of ``source`` and are not scored; their contents
    are part of the settings too.

    Raises UsageError (nothing to score), ResultsError (``out`` not writable or of another run), and what the
    detector raises; rows written until then are kept.
    """
    from clipspect.results.finish import finish_run

    started = time.monotonic()
    paths = find_photographs(source)
    root = source if source.is_dir() else source.parent
    photographs = {row_path(path.relative_to(root).as_posix()): path for path in paths}
    settings = {
        **detector.settings(),
        "object": object,
        "source": row_path(str(source.resolve())),
        "maps": maps,
        "references": next((r.digest for r in (references, templates) if r is not None), None),
        "company": _digest(company) if company else None,
    }
    report_progress = progress or (lambda _: None)
    methods = list(settings["methods"])
    with ResultStore(out, settings, overwrite=overwrite) as store:
        pending = _pending(store, photographs)
        kept = len(photographs) - len(pending)
        failed = 0
        wanted = set(pending)
        stream = detector.stream(
            list(photographs.values()),
            object=object,
            root=root,
            only=wanted.__contains__,
            references=references,
            templates=templates,
            company=company,
        )
        for number, detection in enumerate(stream if pending else ()):
            failed += detection.score_map is None and number % len(methods) == 0
            _write_map(out, detection, maps, several=len(methods) > 1)
            store.add(detection, _preview(detection))
            done = kept + (number + 1) // len(methods)
            report_progress(Progress("detect", done, len(photographs), kept, failed, detection.path))
        store.flush()
        outcome = finish_run(
            store,
            photographs,
            thresholds=thresholds,
            overlays=overlays,
            csv=csv,
            report=report,
            progress=lambda done, path: report_progress(
                Progress("finish", done, max(done, len(photographs)), kept, failed, path)
            ),
        )
    return RunSummary(
        out=out,
        photographs=outcome.photographs,
        computed=len(pending),
        kept=kept,
        flagged=outcome.flagged,
        failed=outcome.failed,
        errors=outcome.errors[:SHOWN_ERRORS],
        warnings=outcome.warnings,
        thresholds=outcome.thresholds,
        seconds=time.monotonic() - started,
        report=outcome.report,
        csv=outcome.csv,
    )


def _digest(photographs: Sequence[Path]) -> str:
    """SHA-256 over the contents of some photographs, in whatever order they come."""
    from clipspect.images.decode import hash_file

    return hashlib.sha256("".join(sorted(map(hash_file, photographs))).encode()).hexdigest()


def output_path(folder: Path, path: str, suffix: str) -> Path:
    """Where a file made from the photograph ``path`` goes: the same tree below ``folder``, ``suffix`` added.

    ``path`` cannot lead out of ``folder``.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return folder.joinpath(*parts[:-1], parts[-1] + suffix)


def _pending(store: ResultStore, photographs: Mapping[str, Path]) -> list[Path]:
    """The photographs still to be scored; rows of those that have changed are dropped from the store."""
    from clipspect.images.decode import hash_file

    hashes = dict(store.finished())
    pending, changed = [], []
    for name, path in photographs.items():
        if name not in hashes:
            pending.append(path)
            continue
        try:
            unchanged = hash_file(path) == hashes[name]
        except ImageError:  # it could be read once; the detector will say what is wrong now
            unchanged = False
        if not unchanged:
            changed.append(name)
            pending.append(path)
    store.forget(changed)
    return pending


def _preview(detection: Detection) -> bytes | None:
    from clipspect.results.heatmap import encode_preview

    return None if detection.thumbnail is None else encode_preview(detection.thumbnail)


def method_suffix(method: str, *, several: bool) -> str:
    """What the name of a picture carries to tell methods apart: nothing where there is one."""
    return f".{method}" if several else ""


def _write_map(out: Path, detection: Detection, maps: MapFormat, *, several: bool) -> None:
    """The map at the photograph's size: 16-bit grey (65535 is 1) or float32. Comes before its row."""
    if maps == "none" or detection.score_map is None:
        return
    values = detection.anomaly_map
    suffix = method_suffix(detection.method, several=several) + (".npy" if maps == "npy" else ".png")
    with open_whole(out, output_path(out / MAPS, row_path(detection.path), suffix)) as file:
        if maps == "npy":
            np.save(file, values)
        else:
            write_grey(file, values)
