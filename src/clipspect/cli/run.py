"""Steps that several commands share: load a detector, calibrate it, score one image or a folder, with progress."""

from __future__ import annotations

import errno
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipspect.cli.options import Overlays
from clipspect.cli.output import console, print_detection
from clipspect.config import DetectorConfig
from clipspect.data.find import OVERLAY_SUFFIX
from clipspect.detection import at_threshold
from clipspect.errors import ResultsError
from clipspect.types import plural

if TYPE_CHECKING:
    from clipspect.detection import Detection
    from clipspect.detector import Detector
    from clipspect.export.onnx_detector import OnnxDetector
    from clipspect.references import GoodImages
    from clipspect.results.run import Engine, RunSummary

OVERLAYS = Path("clipspect-overlays")
"""Folder of single images' overlays, in the current folder: nothing is written where the images lie."""


def load_detector(config: DetectorConfig) -> Detector:
    """Load a detector; its warnings and the agreement of its precision go to stderr."""
    with console(stderr=True).status("loading the model"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        from clipspect.loading import build_detector

        detector = build_detector(config)
    for warning in caught:
        if "random weights" in str(warning.message):
            console(stderr=True).print(
                f"warning: {warning.message}", style="bold yellow", highlight=False, soft_wrap=True
            )
    if detector.agreement is not None:
        said = f"precision {detector.backbone.precision}: {detector.agreement}"
        console(stderr=True).print(said, style="dim", highlight=False, soft_wrap=True)
    return detector


def load_exported(config: DetectorConfig) -> OnnxDetector:
    """Load an exported file into ONNX Runtime; PyTorch is not imported."""
    from clipspect.export.onnx_detector import OnnxDetector

    return OnnxDetector.load(config)


def calibrate(
    detector: Detector, object: str, good: Path, rate: float | None, context: dict[str, Any]
) -> GoodImages:
    """References and calibration from known-good images; those that cannot be read are named."""
    from clipspect.postprocess.calibration import DEFAULT_FALSE_ALARM_RATE

    with StageBars() as bars:
        calibrated = detector.calibrate(
            good,
            object,
            false_alarm_rate=DEFAULT_FALSE_ALARM_RATE if rate is None else rate,
            on_step=bars.show,
            **context,
        )
    warn_left_out(calibrated)
    return calibrated


def warn_left_out(calibrated: GoodImages) -> None:
    """Name the known-good images that are left out, and say what may be wrong with them as a whole."""
    for note in calibrated.notes:
        _warn(note)
    for name, reason in calibrated.failed:
        _warn(f"{name}: left out of the known-good images ({reason})")


def _warn(text: str) -> None:
    said = f"warning: {text}"
    console(stderr=True).print(said, style="bold yellow", markup=False, highlight=False, soft_wrap=True)


def score_one(
    detector: Detector | OnnxDetector,
    source: Path,
    object: str,
    good: GoodImages | None,
    threshold: float | None,
    context: dict[str, Any],
    overlays: Overlays,
    as_json: bool,
) -> tuple[int, int]:
    """Score one image; how many methods flagged it, and how many failed."""
    from clipspect.results.outputs import short_name

    found: list[Detection] = [
        at_threshold(d, threshold)
        for d in detector.stream([source], object=object, root=source.parent, good=good, **context)
    ]
    failed = 0
    for detection in found:
        if detection.error is not None:
            message = f"failed {source}: {detection.error}"
            console(stderr=True).print(
                message, style="bold red", highlight=False, markup=False, soft_wrap=True
            )
            if as_json:
                _print_json(detection, None)
            failed += 1
            continue
        tag = "" if len(found) == 1 else f".{detection.method}"
        drawn = overlays is Overlays.all or (overlays is Overlays.flagged and detection.flag)
        overlay = OVERLAYS / short_name(source.name, f"{tag}{OVERLAY_SUFFIX}") if drawn else None
        if overlay is not None and not _save(detection, overlay):
            overlay = None
        if as_json:
            _print_json(detection, overlay)
        else:
            print_detection(detection, overlay)
    return sum(bool(d.flag) for d in found), failed


def _print_json(detection: Detection, overlay: Path | None) -> None:
    from clipspect.results.export import detection_json

    print(json.dumps({**detection_json(detection), "overlay": None if overlay is None else str(overlay)}))


def _save(detection: Detection, overlay: Path) -> bool:
    """Write the overlay; a warning where the folder is read-only, as the result does not depend on it."""
    from clipspect.results.files import results_errors

    try:
        with results_errors(overlay):
            overlay.parent.mkdir(exist_ok=True)
        detection.save(overlay)
    except ResultsError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _warn(f"no overlay is written: {Path.cwd()} is read-only; give --out FOLDER for one")
        return False
    return True


class StageBars:
    """A bar on stderr per stage of the work: count, images per second, time left."""

    def __init__(self) -> None:
        """Show nothing yet."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> StageBars:
        """Draw the bars from now on."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bars as they are."""
        self._bars.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Set the count of a stage; a new stage gets a bar below the others."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, rate="")
        number = self._tasks[stage]
        task = self._bars.tasks[self._bars.task_ids.index(number)]
        speed = f"{task.speed:.1f}/s" if task.speed else ""
        self._bars.update(number, completed=done, total=total, rate=speed)


def run_with_progress(engine: Engine, **run_options: Any) -> RunSummary:
    """``run_engine`` with a bar per stage; Ctrl-C says what was kept."""
    from clipspect.results.run import Progress, run_engine

    names = {"detect": "scoring images", "finish": "drawing and reporting"}
    kept = 0

    def show(state: Progress) -> None:
        nonlocal kept
        kept = state.done if state.stage == "detect" else kept
        bars.show(names.get(state.stage, state.stage), state.done, state.total)

    with StageBars() as bars:
        try:
            return run_engine(engine, progress=show, **run_options)
        except KeyboardInterrupt:
            said = f"stopped: {plural(kept, 'scored image')} kept in {run_options['out']}"
            console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)
            raise
