"""`clipspect detect --engine ray`: from options to a run on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipspect.detector import Detector
    from clipspect.results.run import Engine, RunSummary


def run_on_ray(
    detector: Detector,
    recipe: Mapping[str, Any],
    source: str,
    object: str,
    reference: Path | None,
    address: str | None,
    workers: int | None,
    run: Callable[[Engine], RunSummary],
) -> RunSummary:
    """Run with an engine on Ray; ``recipe`` are the arguments of ``clipspect.load`` that made ``detector``.

    Raises UsageError where Ray is not installed or not to be reached.
    """
    import clipspect
    from clipspect.distributed.ray_engine import RayEngine, pack_references, ray_cluster
    from clipspect.distributed.sources import open_source

    engine = RayEngine(
        detector,
        partial(clipspect.load, **recipe),
        open_source(source),
        object,
        references=None if reference is None else pack_references(detector, reference, object),
        workers=workers,
        gpus=not str(recipe["device"]).startswith("cpu"),
    )
    with ray_cluster(address):
        return run(engine)
