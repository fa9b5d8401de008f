"""RayEngine: scores a run's images with Ray Data actors, on this machine or on a cluster.

The driver lists the images, sends their names to workers in small blocks and writes the returned rows. Results are
complete and contain every image even if workers crash. The driver resubmits lost blocks in smaller blocks. An image
that still crashes a worker when processed alone becomes a row with an error.

"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.decode import decode_image
from clipspect.detection import Detection
from clipspect.distributed.sources import ImageSource
from clipspect.distributed.worker import FAILURE, Numbered, ScoreBatch, hash_batch, pool_name
from clipspect.errors import ClipspectError, UsageError
from clipspect.results.rows import detection_to_row
from clipspect.types import Step

if TYPE_CHECKING:
    from clipspect.detector import Detector

BLOCKS = (32, 4, 1, 1)
"""Images per block: in the first pass, and in the passes over lost blocks.

Images that are still lost get one pass each. An image that is lost in its own pass is the cause of the crash.
"""
HOPELESS = 100
"""Number of images without a single returned row that marks the fault as one of the workers, not of the images."""
HASHED_AT_ONCE = 256
LOST = "the worker crashed, even when retrying this image alone; see the worker's log, or remove the image"


@dataclass(frozen=True)
class PackedReferences:
    """References in the form sent to workers."""

    data: bytes
    """Content of a ``.refs`` file, checked by every worker that opens it."""
    digest: str
    """Hash that identifies these references in the run's settings."""


@dataclass(frozen=True)
class RayEngine:
    """Ray implementation of :class:`clipspect.results.run.Engine`. Use it inside :func:`ray_cluster`."""

    detector: Detector
    """The driver's detector: it provides the settings and scores nothing."""
    build: Callable[[], Detector]
    """Factory of the same detector in a worker; picklable."""
    source: ImageSource
    object: str
    references: PackedReferences | None = None
    workers: int | None = None
    """Number of workers; None = one per GPU of the cluster or, without GPUs, one per core."""
    gpus: bool = True
    """Whether workers use the cluster's GPUs, if it has any."""

    def settings(self) -> dict[str, Any]:
        """Return the settings of a single-process run, so that either kind of run can resume the other."""
        return {
            **self.detector.settings(),
            "object": self.object,
            "source": self.source.location,
            "references": self.references.digest if self.references else None,
            "good": None,
            "set": self._set_identity(),
        }

    def config(self) -> Mapping[str, Any]:
        """Return the detector's options."""
        return self.detector.config.to_dict()

    def _set_identity(self) -> str | None:
        """Return what :meth:`Detector.set_identity` returns, for images in any source."""
        if not self.detector.uses_sets:
            return None
        hashes = sorted(self.hashes([name for _, name in self._pool()]).values())
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def images(self) -> Sequence[str]:
        """All of the source."""
        return self._names

    def notes(self) -> Sequence[str]:
        """Return notes on files that the source leaves out."""
        left_out = self.source.left_out()
        return () if left_out is None else (left_out,)

    @cached_property
    def _names(self) -> Sequence[str]:
        return self.source.names()

    def hashes(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the SHA-256 of each image's bytes, read by the cluster."""
        import pyarrow as pa

        tables = [pa.table({"name": part}) for part in _parts(names, HASHED_AT_ONCE)]
        found: dict[str, str] = {}
        with _data_context() as data:
            hashed = data.from_arrow(tables).map_batches(
                hash_batch, batch_size=None, batch_format="pyarrow", fn_args=(self.source,), num_cpus=1
            )
            for batch in hashed.iter_batches(batch_size=None, batch_format="pyarrow"):
                found |= {row["name"]: row["hash"] for row in batch.to_pylist() if row["hash"] is not None}
        return found

    def score(self, names: Sequence[str], on_step: Step | None = None) -> Iterator[dict[str, Any]]:
        """Yield rows as they arrive. Raises ClipspectError for a worker fault that no image causes."""
        positions = {name: number for number, name in enumerate(self._names)}
        numbered = [(positions[name], name) for name in names]
        for size in BLOCKS:
            done: set[str] = set()
            for row in self._pass(numbered, size):
                done.add(row["path"])
                yield row
            if not done and len(numbered) >= HOPELESS:
                raise ClipspectError(
                    f"every worker ended before it returned any of the {len(numbered)} images; see the workers' "
                    "logs (memory? weights on every machine?), then run the same command again"
                )
            numbered = [(position, name) for position, name in numbered if name not in done]
            if not numbered:
                return
        # Blocks queued for a crashed worker are lost with it, so each remaining image gets its own pass.
        for one in numbered:
            yield from list(self._pass([one], 1)) or self._lost(one[1])

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Read and decode an image in the driver."""
        data = self.source.read(name)
        reader = self.detector.reader
        return decode_image(data, name=name, max_pixels=reader.max_pixels, value_range=reader.value_range)

    def _pass(self, numbered: Sequence[Numbered], size: int) -> Iterator[dict[str, Any]]:
        """Yield rows of all returned blocks; blocks lost with their worker are missing."""
        import pyarrow as pa

        tables = [
            pa.table({"position": [p for p, _ in part], "name": [n for _, n in part]})
            for part in _parts(numbered, size)
        ]
        workers, cpus, gpus = self._resources()
        with _data_context() as data:
            scored = data.from_arrow(tables).map_batches(
                ScoreBatch,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(self.build, self.source),
                fn_constructor_kwargs={
                    "object": self.object,
                    "references": self.references.data if self.references else None,
                    "pool": self._pool(),
                    "settings": self.detector.settings(),
                },
                compute=data.ActorPoolStrategy(size=min(workers, len(tables))),
                num_cpus=cpus,
                num_gpus=gpus,
                **_ACTOR,
            )
            for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    failure = row.pop(FAILURE)
                    if failure is not None:
                        raise ClipspectError(f"a worker failed: {failure}")
                    yield row

    def _pool(self) -> list[Numbered]:
        """Return the pool of the set, chosen from all images including finished ones, as in a single-process run."""
        if not self.detector.uses_sets:
            return []
        chosen = self.detector.sample_pool([pool_name(name) for name in self._names])
        return [(position, self._names[position]) for position in chosen]

    def _resources(self) -> tuple[int, int, int]:
        """Return the number of workers, cores per worker and GPUs per worker."""
        import ray

        there: dict[str, float] = ray.cluster_resources()
        cores, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0)) if self.gpus else 0
        workers = self.workers or gpus or cores
        return workers, max(1, cores // workers), 1 if gpus else 0

    def _lost(self, name: str) -> Iterator[dict[str, Any]]:
        for method in self.detector.methods:
            failed = Detection(
                path=name,
                content_hash="",
                width=0,
                height=0,
                object=self.detector.model.prompts.object_name(self.object),
                method=method.name,
                model=self.detector.backbone.name,
                weights=self.detector.backbone.weights,
                raw_score=float("nan"),
                score_map=None,
                seconds=0.0,
                error=LOST,
            )
            yield detection_to_row(failed, None)


_ACTOR = {"max_restarts": -1, "max_task_retries": 0}
"""Ray restarts a crashed worker but not its block, which may have caused the crash."""


def pack_references(detector: Detector, source: Path, object: str) -> PackedReferences:
    """Pack references for workers, from a ``.refs`` file or from images, which are encoded here.

    Raises ReferencesError and ImageError like :meth:`Detector.read_references`.
    """
    from clipspect.registry import REFERENCES_SUFFIX

    if source.suffix == REFERENCES_SUFFIX:
        return PackedReferences(source.read_bytes(), detector.read_references(source, object).digest)
    with TemporaryDirectory() as folder:
        packed = Path(folder) / f"packed{REFERENCES_SUFFIX}"
        detector.write_references(source, object, packed)
        return pack_references(detector, packed, object)


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Provide Ray during a run: the cluster at ``address``, else the one in $RAY_ADDRESS, else this machine.

    If Ray already runs (a notebook, a test), it is used and left running.

    Raises UsageError: Ray is not installed, or there is no cluster at that address.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray; install clipspect[ray]") from error
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its log would overwrite the progress bar
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(found, log_to_driver=False, logging_level=logging.ERROR, **_local_only(found))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {found} ({error}); start one, or omit --address") from error
    try:
        yield
    finally:
        ray.shutdown()


def _local_only(address: str) -> dict[str, Any]:
    return {"include_dashboard": False} if address == "local" else {}


@contextmanager
def _data_context() -> Iterator[Any]:
    """Provide ``ray.data`` without log output, set to continue without blocks lost with a crashed worker."""
    import ray.data

    context = ray.data.DataContext.get_current()
    before = context.max_errored_blocks, context.enable_progress_bars
    logger = logging.getLogger("ray.data")
    level = logger.level
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # see pyproject.toml
            yield ray.data
    finally:
        context.max_errored_blocks, context.enable_progress_bars = before
        logger.setLevel(level)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
