"""Loader: images of a run, decoded ahead in threads and yielded in order, each as an image or as its error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from clipspect.data.prefetch import prefetch
from clipspect.data.prepare import ImageLoader, PreparedImage, Source, hash_source
from clipspect.errors import ClipspectError, ImageError

Templates = Callable[[Path], Path]
"""Function that returns an image's reference file."""

READERS = min(4, os.cpu_count() or 1)
"""Number of decoding threads; PIL releases the interpreter's lock while it decodes."""


@dataclass(frozen=True)
class LoadedImage:
    """Image loaded for a run, or the error that replaces it."""

    position: int
    """Index in the run, from 0."""
    name: str
    image: PreparedImage | None = None
    template: PreparedImage | None = None
    """Its reference, if references are given by file."""
    error: ClipspectError | None = None
    content_hash: str = ""
    """Content hash of a file that failed; images store their own."""
    started: float = field(default_factory=perf_counter)


def source_name(source: Source, position: int, root: Path | None = None) -> str:
    """Return the name of an image in results: its path below ``root``, its file's name, or "image 3"."""
    if not isinstance(source, str | Path):
        return f"image {position + 1}"
    path = Path(source)
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else path.name


def load_images(
    sources: Iterable[Source],
    reader: ImageLoader,
    *,
    ahead: int,
    root: Path | None = None,
    templates: Templates | None = None,
    keep: Callable[[int, Source], bool] | None = None,
    cache: MutableMapping[int, LoadedImage] | None = None,
) -> Iterator[LoadedImage]:
    """Yield loaded images in the order of the sources, at most ``ahead`` of them decoded and not yet consumed.

    Args:
        sources: paths or images; pulled lazily.
        reader: decodes and tiles them.
        ahead: bounds memory.
        root: names are relative to it.
        templates: returns each image's reference, which is decoded with it.
        keep: whether to read the source at a position; the others are skipped and keep their position.
        cache: previously read images by position; removed from the cache instead of read again.
    """
    cache = {} if cache is None else cache

    def wanted() -> Iterator[tuple[int, Source]]:
        for position, source in enumerate(sources):
            if keep is None or keep(position, source):
                yield position, source

    def load(numbered: tuple[int, Source]) -> tuple[PreparedImage, PreparedImage | None]:
        position, source = numbered
        if (before := cache.pop(position, None)) is not None and before.image is not None:
            return before.image, before.template
        image = reader.read(source, source_name(source, position, root))
        if templates is None:
            return image, None
        template = reader.read(templates(Path(source)))
        if len(template.pieces) != len(image.pieces):
            raise ImageError(
                image.name,
                f"its reference is {template.width}×{template.height} pixels and cut into other tiles than the"
                f" image of {image.width}×{image.height}; use references of the same size",
            )
        return image, template

    for (position, source), loaded in prefetch(wanted(), load, workers=READERS, ahead=ahead):
        name = source_name(source, position, root)
        if isinstance(loaded, ClipspectError):
            yield LoadedImage(position, name, error=loaded, content_hash=hash_source(source))
        else:
            yield LoadedImage(position, name, *loaded)


def cache_loaded(
    entries: Iterable[LoadedImage], cache: MutableMapping[int, LoadedImage], positions: Sequence[int]
) -> Iterator[LoadedImage]:
    """Yield the entries; also store each at its position in the run, for :func:`load_images`."""
    for entry in entries:
        cache[positions[entry.position]] = entry
        yield entry


def batches(entries: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Group entries into lists of at least ``size`` tiles; an entry with an error counts as one."""
    batch: list[LoadedImage] = []
    pieces = 0
    for entry in entries:
        batch.append(entry)
        pieces += len(entry.image.pieces) if entry.image else 1
        if pieces >= size:
            yield batch
            batch, pieces = [], 0
    if batch:
        yield batch
