"""Runs over a folder: images in; rows, overlays and a report out; resumable at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipspect.config import DetectorConfig
from clipspect.data.find import Scan, scan_folder
from clipspect.detection import Detection
from clipspect.errors import ImageError, ResultsError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.outputs import MapFormat, OverlayChoice
from clipspect.results.rows import detection_to_row, row_path
from clipspect.results.store import ResultStore, iterate_rows
from clipspect.types import Step, plural

SHOWN_ERRORS = 20


class DetectorLike(Protocol):
    """Detector interface that a run needs."""

    @property
    def config(self) -> DetectorConfig:
        """Return the options it was loaded with."""

    def settings(self) -> dict[str, Any]:
        """Return everything that could change a score as JSON, including the fingerprint of the weights."""

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
        on_step: Step | None,
    ) -> Iterator[Detection]:
        """Yield one detection per method and image, in order; ``path`` is relative to ``root``.

        ``should_score`` selects the images to score; the others only belong to the set.
        """

    def set_identity(self, paths: Sequence[Path]) -> str | None:
        """Return the hash of the images that serve as each other's references; None if no method needs a set."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run: ``detect`` scores images, ``finish`` writes overlays and reports."""

    stage: str
    """"detect", "finish", or the name of a step before the first image is scored."""
    done: int
    """Number of images done in this stage, including those of earlier runs."""
    total: int
    kept: int
    """Number of images that an earlier run finished."""
    failed: int
    path: str
    """Latest finished image."""


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run."""

    out: Path
    images: int
    computed: int
    """Number of images scored by this run."""
    kept: int
    """Number of images finished by an earlier run and unchanged since."""
    flagged: int
    """Number of images that any method flags."""
    failed: int
    errors: tuple[tuple[str, str], ...]
    """(path, reason) of the first 20 images that failed."""
    warnings: tuple[str, ...]
    verdicts: Mapping[str, int]
    """verdict → number of images, for the first method."""
    missing: int
    """Rows of missing files."""
    calibrations: Mapping[str, Calibration]
    """By method."""
    seconds: float
    report: Path | None
    csv: Path | None


class Engine(Protocol):
    """Scoring engine of a run: in this process, or on a cluster."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that identify this run, as JSON; includes ``methods``."""

    def config(self) -> Mapping[str, Any]:
        """Return the detector's options as JSON, for the manifest; they do not identify the run."""

    def images(self) -> Sequence[str]:
        """Return the images' names as stored in rows. Raises UsageError if there are none."""

    def notes(self) -> Sequence[str]:
        """Return notes for the user besides the rows, such as on skipped files."""

    def hashes(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return content hashes of images by name; unreadable ones are omitted."""

    def score(self, names: Sequence[str], on_step: Step | None = None) -> Iterator[dict[str, Any]]:
        """Yield one row per method and image, in any order of the images; rows of one image are consecutive.

        ``on_step`` is called during the work before the first row.
        """

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Read an image (H, W, 3) again for drawing. Raises ImageError."""


@dataclass(frozen=True)
class LocalEngine:
    """Engine that scores a folder, or one file, with a detector in this process."""

    detector: DetectorLike
    source: Path
    object: str
    references: Any = None
    templates: Any = None
    good: Any = None
    """Known-good images (:class:`clipspect.references.GoodImages`): references and calibration in one."""
    all_pages: bool = False
    """Whether to score each page of a multi-page file, instead of the first."""
    only: Callable[[str], bool] | None = None
    """Which images of the source to score, by name; None = all."""

    @property
    def root(self) -> Path:
        """Return the folder that names are relative to."""
        return self.source if self.source.is_dir() else self.source.parent

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Name → file."""
        found = {row_path(path.relative_to(self.root).as_posix()): path for path in self._scan.images}
        return {name: path for name, path in found.items() if self.only is None or self.only(name)}

    @cached_property
    def _scan(self) -> Scan:
        return scan_folder(self.source, all_pages=self.all_pages)

    def notes(self) -> Sequence[str]:
        """Return notes on other files in the folder."""
        left_out = self._scan.summary()
        return () if left_out is None else (left_out,)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the detector and of this run."""
        return {
            **self.detector.settings(),
            "object": self.object,
            "source": row_path(str(self.source.resolve())),
            "references": next((r.digest for r in (self.references, self.templates) if r is not None), None),
            "good": None if self.good is None else self.good.set_digest,
            "set": None if self.good is not None else self.detector.set_identity(list(self.paths.values())),
        }

    def config(self) -> Mapping[str, Any]:
        """Return the detector's options."""
        return self.detector.config.to_dict()

    @property
    def levels(self) -> Mapping[str, Calibration]:
        """Return the level of one image alone by method, where the model has one."""
        return getattr(self.detector, "levels", {})

    @property
    def template_folder(self) -> str | None:
        """Return the folder of the images' own references, which the report shows."""
        folder = getattr(self.templates, "folder", None)
        return None if folder is None else row_path(str(folder.resolve()))

    def images(self) -> Sequence[str]:
        """Return all images, sorted by path."""
        return list(self.paths)

    def hashes(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the SHA-256 of the files' bytes."""
        from clipspect.data.decode import hash_file

        found = {}
        for name in names:
            with suppress(ImageError):  # unreadable now: the detector reports the error
                found[name] = hash_file(self.paths[name])
        return found

    def score(self, names: Sequence[str], on_step: Step | None = None) -> Iterator[dict[str, Any]]:
        """Yield rows in the order of the images."""
        wanted = {self.paths[name] for name in names}
        stream = self.detector.stream(
            list(self.paths.values()),
            object=self.object,
            root=self.root,
            should_score=wanted.__contains__,
            references=self.references,
            templates=self.templates,
            good=self.good,
            on_step=on_step,
        )
        for detection in stream:
            yield detection_to_row(detection, preview_of(detection))

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Decode the file again."""
        from clipspect.data.decode import read_image

        if name not in self.paths:
            raise ImageError(name, f"is no longer in {self.source}")
        return read_image(self.paths[name], **self._reading)[0]

    @cached_property
    def _reading(self) -> dict[str, Any]:
        """Return the detector's limit and range, so that overlays use the same pixels as scoring."""
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
    masks: bool = False,
    overlays: OverlayChoice = "all",
    csv: bool = False,
    report: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Score the images of ``source`` (a folder or one file) into the results folder ``out``.

    ``references`` and ``templates`` are passed to the detector; their ``digest`` is part of the run's settings.
    ``good`` are known-good images: references and calibration in one. See :func:`run_engine` for the rest.
    """
    return run_engine(
        LocalEngine(detector, source, object, references, templates, good),
        out=out,
        calibrations={} if good is None else good.calibrations,
        threshold=threshold,
        maps=maps,
        masks=masks,
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
    masks: bool = False,
    overlays: OverlayChoice = "all",
    csv: bool = False,
    report: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Score an engine's images into the results folder ``out``.

    Images that an earlier run with the same settings finished, identified by path and content, are kept. A failed image
    becomes a row with an error, which the next run retries. Without ``calibrations`` the images of the run are compared
    with each other. Memory does not grow with the number of images, except for their names.

    Raises UsageError (nothing to score), ResultsError (``out`` not writable or of another run), and the detector's
    exceptions; rows written until then are kept.
    """
    from clipspect.results.finalize import at_thresholds, finish_run

    started = time.monotonic()
    images = engine.images()
    settings = engine.settings()
    methods = list(settings["methods"])
    report_progress = progress or (lambda _: None)

    def on_step(what: str, done: int, total: int) -> None:
        report_progress(Progress(what, done, total, 0, 0, ""))

    with ResultStore(out, settings, overwrite=overwrite, config=engine.config()) as store:
        if calibrations and set(methods) <= calibrations.keys():
            store.calibrations = at_thresholds({m: calibrations[m] for m in methods}, threshold)
        if (folder := getattr(engine, "template_folder", None)) is not None:
            store.update_manifest(templates=folder)
        pending = _pending(store, engine, images)
        kept = len(images) - len(pending)
        failed = 0
        for number, row in enumerate(engine.score(pending, on_step) if pending else ()):
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
            levels=getattr(engine, "levels", {}),
            maps=maps,
            masks=masks,
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
    """Return the images still to be scored; rows of changed images are removed from the store."""
    there = set(images)
    finished = {name: digest for name, digest in store.finished() if name in there}
    now = engine.hashes(list(finished)) if finished else {}
    changed = {name for name, digest in finished.items() if now.get(name) != digest}
    store.forget(changed)
    return [name for name in images if name not in finished or name in changed]


def _check_complete(store: ResultStore, images: Sequence[str]) -> None:
    """Raise ResultsError if an image has no row because parts were removed during the run."""
    missing = set(images).difference(row["path"] for row in iterate_rows(store.out, ["path"]))
    if missing:
        raise ResultsError(
            f"{store.out}: rows of {plural(len(missing), 'image')} were removed while it was written "
            f"({min(missing)} …); run the same command again"
        )


def preview_of(detection: Detection) -> bytes | None:
    """Return the small JPEG stored in the row."""
    from clipspect.postprocess.heatmap import encode_preview

    return None if detection.thumbnail is None else encode_preview(detection.thumbnail)
