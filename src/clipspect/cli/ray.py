"""`clipspect detect --engine ray`: from options to a run on Ray."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipspect.detector import Detector
    from clipspect.results.run import Engine, RunSummary


def run_on_ray(
    detector: Detector,
    source: str,
    object: str,
    reference: Path | None,
    address: str | None,
    workers: int | None,
    run: Callable[[Engine], RunSummary],
) -> RunSummary:
    """Run with an engine on Ray, whose workers load the detector's configuration.

    Raises UsageError where Ray is not installed or cannot be reached.
    """
    from clipspect.distributed.ray_engine import RayEngine, pack_references, ray_cluster
    from clipspect.distributed.sources import open_source
    from clipspect.loading import build_detector

    config = detector.config
    engine = RayEngine(
        detector,
        partial(build_detector, config),
        open_source(source),
        object,
        references=None if reference is None else pack_references(detector, reference, object),
        workers=workers,
        gpus=not config.device.startswith("cpu"),
    )
    with ray_cluster(address):
        return run(engine)
