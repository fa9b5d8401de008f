"""Worker functions: image names in, result rows out, as Arrow tables."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from clipspect.data.loader import READERS, LoadedImage
from clipspect.data.prefetch import prefetch
from clipspect.distributed.sources import ImageSource
from clipspect.errors import ClipspectError, ImageError, UsageError
from clipspect.results.rows import detection_to_row
from clipspect.results.run import preview_of
from clipspect.results.schema import arrow_schema

if TYPE_CHECKING:
    from clipspect.backbones.features import Features
    from clipspect.data.prepare import ImageLoader, PreparedImage
    from clipspect.detector import Detector

FAILURE = "failure"
"""Extra column of the rows: a worker failure that no image causes."""

Numbered = tuple[int, str]
"""Position in the run, and image name."""


def output_schema() -> Any:
    """Return the Arrow schema of a worker's output: rows, and the failure."""
    import pyarrow as pa

    return arrow_schema().append(pa.field(FAILURE, pa.string()))


class ScoreBatch:
    """Ray Data actor: built once per worker, called with a table of positions and names."""

    def __init__(
        self,
        build: Callable[[], Detector],
        source: ImageSource,
        *,
        object: str,
        references: bytes | None,
        pool: Sequence[Numbered],
        settings: Mapping[str, Any],
    ) -> None:
        """Store the arguments. The first batch sets up the detector and reports setup errors, which Ray does not retry.

        Args:
            build: makes the detector.
            source: source of the images.
            object: name of the object in the images.
            references: a ``.refs`` file, for every image.
            pool: the images that methods of scope "set" compare with.
            settings: settings of the driver's detector. A worker with other settings would give other scores.
        """
        self._build, self._source, self._object, self._references = build, source, object, references
        self._pool, self._settings = pool, settings
        self._ready: tuple[Detector, Any] | None = None

    def __call__(self, batch: Any) -> Any:
        """Return the rows of a table with the columns ``position`` and ``name``."""
        import pyarrow as pa

        try:
            rows = list(
                self._rows(list(zip(batch["position"].to_pylist(), batch["name"].to_pylist(), strict=True)))
            )
        except ClipspectError as error:
            rows = [{FAILURE: str(error)}]
        except Exception:
            rows = [{FAILURE: traceback.format_exc()}]
        return pa.Table.from_pylist(rows, schema=output_schema())

    def _rows(self, numbered: Sequence[Numbered]) -> Iterator[dict[str, Any]]:
        self._ready = self._ready or self._make_ready()
        detector, run = self._ready
        entries = fetch_images(numbered, self._source, detector.reader)
        for detection in detector.score(entries, run):
            yield {**detection_to_row(detection, preview_of(detection)), FAILURE: None}

    def _make_ready(self) -> tuple[Detector, Any]:
        detector = self._build()
        here = detector.settings()
        other = [
            name for name in sorted({*here, *self._settings}) if here.get(name) != self._settings.get(name)
        ]
        if other:
            raise UsageError(
                f"a worker's detector differs from the driver's in {', '.join(other)}; install the same clipspect "
                "and the same weights on every machine"
            )
        references = self._read_references(detector)
        pool = fetch_images(self._pool, self._source, detector.reader)
        return detector, detector.begin(self._object, references=references, pool=pool)

    def _read_references(self, detector: Detector) -> Features | None:
        if self._references is None:
            return None
        with TemporaryDirectory() as folder:
            path = Path(folder) / "shared.refs"
            path.write_bytes(self._references)
            return detector.read_references(path, self._object)


def hash_batch(batch: Any, source: ImageSource) -> Any:
    """Return a table of ``name`` and ``hash``, null if an image cannot be read. Called by Ray Data."""
    import pyarrow as pa

    names = batch["name"].to_pylist()
    loaded = prefetch(names, source.read, workers=READERS, ahead=2 * READERS)
    hashes = [None if isinstance(data, ClipspectError) else _hash(data) for _, data in loaded]
    return pa.table({"name": names, "hash": pa.array(hashes, pa.string())})


def fetch_images(
    numbered: Iterable[Numbered], source: ImageSource, reader: ImageLoader
) -> Iterator[LoadedImage]:
    """Read and decode images ahead in threads; yield each in order as an image or as its error."""

    def load(one: Numbered) -> LoadedImage:
        position, name = one
        try:
            data = source.read(name)
        except ImageError as error:
            return LoadedImage(position, name, error=error)
        try:
            image: PreparedImage = reader.read(data, name)
        except ClipspectError as error:
            return LoadedImage(position, name, error=error, content_hash=_hash(data))
        return LoadedImage(position, name, image)

    for _, entry in prefetch(numbered, load, workers=READERS, ahead=4 * READERS):
        assert isinstance(entry, LoadedImage)
        yield entry


def pool_name(name: str) -> str:
    """Return the file's name, which decides whether an image is in the pool, as in a single-process run."""
    return PurePosixPath(name).name


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
