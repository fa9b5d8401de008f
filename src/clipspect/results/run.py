"""One run over a folder: images in, rows, overlays and a report out, resumable at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clipspect.data.find import Scan, scan_folder
from clipspect.detection import Detection
from clipspect.errors import ImageError, ResultsError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.outputs import MapFormat, OverlayChoice
from clipspect.results.rows import detection_to_row, row_path
from clipspect.results.store import ResultStore, iterate_rows

SHOWN_ERRORS = 20


class DetectorLike(Protocol):
    """What a run needs of a detector."""

    def settings(self) -> dict[str, Any]:
        """JSON: everything that could change a score, the fingerprint of the weights included."""

    def stream(
        self,
        images: Iterable[Path],
        *,
        object: str,
        root: Path | None,
        should_score: Callable[[Path], bool] | None,
        references: Any,
        templates: Any,
        good: Any,
    ) -> Iterator[Detection]:
        """One detection per method and image, in order; ``path`` is relative to ``root``.

        ``should_score`` tells which images to score; the others merely belong to the set.
        """

    def set_identity(self, paths: Sequence[Path]) -> str | None:
        """Hash of the images that serve as each other's references; None where no method needs a set."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``detect`` scores images, ``finish`` draws and writes what people see."""

    stage: Literal["detect", "finish"]
    done: int
    """Images behind us in this stage, kept ones included."""
    total: int
    kept: int
    """Images an earlier run had finished."""
    failed: int
    path: str
    """The image just done."""


@dataclass(frozen=True)
class RunSummary:
    """What a run has left behind."""

    out: Path
    images: int
    computed: int
    """Images scored by this run."""
    kept: int
    """Images an earlier run had finished and that have not changed since."""
    flagged: int
    """Images that any method flags."""
    failed: int
    errors: tuple[tuple[str, str], ...]
    """(path, reason) of the first 20 images that failed."""
    warnings: tuple[str, ...]
    verdicts: Mapping[str, int]
    """verdict → images, of the first method."""
    missing: int
    """Rows of files that are gone."""
    calibrations: Mapping[str, Calibration]
    """By method."""
    seconds: float
    report: Path | None
    csv: Path | None


class Engine(Protocol):
    """Where the images of a run are scored: in this process, or on a cluster."""

    def settings(self) -> dict[str, Any]:
        """JSON: what tells this run from others; ``methods`` among it."""

    def images(self) -> Sequence[str]:
        """The images' names, as rows have them. Raises UsageError where there are none."""

    def notes(self) -> Sequence[str]:
        """What the run's user must know beside its rows, such as files that were left out."""

    def hashes(self, names: Sequence[str]) -> Mapping[str, str]:
        """Content hashes of images by name; those that cannot be read are left out."""

    def score(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """One row per method and image, in any order of the images; the rows of one are neighbours."""

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """An image (H, W, 3) once more, to draw on. Raises ImageError."""


@dataclass(frozen=True)
class LocalEngine:
    """Images of a folder, or one file, scored by a detector in this process."""

    detector: DetectorLike
    source: Path
    object: str
    references: Any = None
    templates: Any = None
    good: Any = None
    """Known-good images (:class:`clipspect.references.GoodImages`): references and calibration in one."""
    all_pages: bool = False
    """Score each page of a file with several; without it the first."""

    @property
    def root(self) -> Path:
        """What names are relative to."""
        return self.source if self.source.is_dir() else self.source.parent

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Name → file."""
        return {row_path(path.relative_to(self.root).as_posix()): path for path in self._scan.images}

    @cached_property
    def _scan(self) -> Scan:
        return scan_folder(self.source, all_pages=self.all_pages)

    def notes(self) -> Sequence[str]:
        """What the folder holds beside its images."""
        left_out = self._scan.summary()
        return () if left_out is None else (left_out,)

    def settings(self) -> dict[str, Any]:
        """The detector's, and those of this run."""
        return {
            **self.detector.settings(),
            "object": self.object,
            "source": row_path(str(self.source.resolve())),
            "references": next((r.digest for r in (self.references, self.templates) if r is not None), None),
            "good": None if self.good is None else self.good.set_digest,
            "set": None if self.good is not None else self.detector.set_identity(list(self.paths.values())),
        }

    def images(self) -> Sequence[str]:
        """All of them, sorted by path."""
        return list(self.paths)

    def hashes(self, names: Sequence[str]) -> Mapping[str, str]:
        """SHA-256 of the files' bytes."""
        from clipspect.data.decode import hash_file

        found = {}
        for name in names:
            with suppress(ImageError):  # it could be read once; the detector will say what is wrong now
                found[name] = hash_file(self.paths[name])
        return found

    def score(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows in the order of the images."""
        wanted = {self.paths[name] for name in names}
        stream = self.detector.stream(
            list(self.paths.values()),
            object=self.object,
            root=self.root,
            should_score=wanted.__contains__,
            references=self.references,
            templates=self.templates,
            good=self.good,
        )
        for detection in stream:
            yield detection_to_row(detection, preview_of(detection))

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Decoded again from the file."""
        from clipspect.data.decode import read_image

        if name not in self.paths:
            raise ImageError(name, f"is no longer in {self.source}")
        return read_image(self.paths[name], **self._reading)[0]

    @cached_property
    def _reading(self) -> dict[str, Any]:
        """The detector's own limit and range: what was scored is drawn on as it was read."""
        from clipspect.data.convert import MAX_PIXELS
        from clipspect.data.ranges import ValueRange

        settings = self.detector.settings()
        window = settings.get("window")
        value_range = ValueRange(
            settings.get("bit_depth"), None if window is None else (window[0], window[1])
        )
        return {"max_pixels": int(settings.get("max_pixels", MAX_PIXELS)), "value_range": value_range}


def run_folder(
    detector: DetectorLike,
    source: Path,
    *,
    object: str,
    out: Path,
    references: Any = None,
    templates: Any = None,
    good: Any = None,
    threshold: float | None = None,
    maps: MapFormat = "none",
    overlays: OverlayChoice = "all",
    csv: bool = False,
    report: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Score the images of ``source`` (a folder or one file) into the results folder ``out``.

    ``references`` and ``templates`` go to the detector; their ``digest`` is part of the run's settings.
    ``good`` are known-good images: references and calibration in one. See :func:`run_engine` for the rest.
    """
    return run_engine(
        LocalEngine(detector, source, object, references, templates, good),
        out=out,
        calibrations={} if good is None else good.calibrations,
        threshold=threshold,
        maps=maps,
        overlays=overlays,
        csv=csv,
        report=report,
        overwrite=overwrite,
        progress=progress,
    )


def run_engine(
    engine: Engine,
    *,
    out: Path,
    calibrations: Mapping[str, Calibration] | None = None,
    threshold: float | None = None,
    maps: MapFormat = "none",
    overlays: OverlayChoice = "all",
    csv: bool = False,
    report: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Score an engine's images into the results folder ``out``.

    Images that an earlier run with the same settings has finished, told by path and content, are kept. A
    image that fails becomes a row with an error, tried again by the next run. Without ``calibrations``
    the images of the run are compared with each other. Memory does not grow with the number of images, but for their
    names.

    Raises UsageError (nothing to score), ResultsError (``out`` not writable or of another run), and what the
    detector raises; rows written until then are kept.
    """
    from clipspect.results.finalize import finish_run

    started = time.monotonic()
    images = engine.images()
    settings = engine.settings()
    methods = list(settings["methods"])
    report_progress = progress or (lambda _: None)
    with ResultStore(out, settings, overwrite=overwrite) as store:
        pending = _pending(store, engine, images)
        kept = len(images) - len(pending)
        failed = 0
        for number, row in enumerate(engine.score(pending) if pending else ()):
            failed += row["error"] is not None and number % len(methods) == 0
            store.add(row)
            done = kept + (number + 1) // len(methods)
            report_progress(Progress("detect", done, len(images), kept, failed, row["path"]))
        store.flush()
        _check_complete(store, images)
        outcome = finish_run(
            store,
            engine.pixels,
            calibrations=calibrations or {},
            threshold=threshold,
            present=set(images),
            maps=maps,
            overlays=overlays,
            csv=csv,
            report=report,
            progress=lambda done, path: report_progress(
                Progress("finish", done, max(done, len(images)), kept, failed, path)
            ),
        )
    return RunSummary(
        out=out,
        images=outcome.images,
        computed=len(pending),
        kept=kept,
        flagged=outcome.flagged,
        failed=outcome.failed,
        errors=outcome.errors[:SHOWN_ERRORS],
        warnings=(*engine.notes(), *outcome.warnings),
        verdicts=outcome.verdicts,
        missing=outcome.missing,
        calibrations=outcome.calibrations,
        seconds=time.monotonic() - started,
        report=outcome.report,
        csv=outcome.csv,
    )


def _pending(store: ResultStore, engine: Engine, images: Sequence[str]) -> list[str]:
    """The images still to be scored; rows of those that have changed are dropped from the store."""
    there = set(images)
    finished = {name: digest for name, digest in store.finished() if name in there}
    now = engine.hashes(list(finished)) if finished else {}
    changed = {name for name, digest in finished.items() if now.get(name) != digest}
    store.forget(changed)
    return [name for name in images if name not in finished or name in changed]


def _check_complete(store: ResultStore, images: Sequence[str]) -> None:
    """Raise ResultsError where an image has no row: somebody has removed parts under the run."""
    missing = set(images).difference(row["path"] for row in iterate_rows(store.out, ["path"]))
    if missing:
        raise ResultsError(
            f"{store.out}: rows of {len(missing)} images were removed while it was written "
            f"({min(missing)} …); run the same command again"
        )


def preview_of(detection: Detection) -> bytes | None:
    """The small JPEG that goes into the row."""
    from clipspect.postprocess.heatmap import encode_preview

    return None if detection.thumbnail is None else encode_preview(detection.thumbnail)
