"""Prepared images: decoded, tiled and resized for a backbone, with the data to stitch their maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.data.convert import MAX_PIXELS, hash_pixels, to_pixels
from clipspect.data.decode import decode, decode_image, hash_file, load_image, read_image
from clipspect.data.ranges import FILE_RANGE, ValueRange
from clipspect.data.roi import RegionOfInterest
from clipspect.data.tiling import Tile, blend_tiles, plan_tiles
from clipspect.data.transforms import ResizeSpec, make_thumbnail
from clipspect.errors import ImageError, UsageError
from clipspect.types import SIGNATURE_SIDE

Source = Any
"""Path, bytes of a file, PIL image, array (H, W[, 3 or 4]) of uint8, uint16 or float, or PyTorch tensor."""

MIN_CONTRAST = 1.0
"""Standard deviation of grey levels below which an image shows nothing: noise of a camera alone reaches it."""


@dataclass(frozen=True)
class PreparedImage:
    """Decoded image as n square inputs: the image itself, or its tiles."""

    name: str
    content_hash: str
    height: int
    width: int
    tiles: Sequence[Tile]
    """Places of the pieces, in pixels of the image; of square tiles in pixels of the resized image."""
    pieces: NDArray[np.uint8]
    """(n, S, S, 3)."""
    thumbnail: NDArray[np.uint8]
    """Thumbnail of at most 256 pixels per side."""
    pixels: Callable[[], NDArray[np.uint8]]
    """Function that returns (H, W, 3) again; files are reread, so that a run's memory does not grow."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how it was read."""

    @cached_property
    def tiled_size(self) -> tuple[int, int]:
        """Return height and width of what the tiles cover, in their pixels."""
        return max(t.top + t.height for t in self.tiles), max(t.left + t.width for t in self.tiles)

    @property
    def signature(self) -> NDArray[np.float32]:
        """Return (F,) area means of the image in gray levels, which re-encoded copies share."""
        side = (SIGNATURE_SIDE, SIGNATURE_SIDE)
        means = Image.fromarray(self.thumbnail).resize(side, Image.Resampling.BOX)
        return np.asarray(means, np.float32).reshape(-1)


@dataclass(frozen=True)
class ImageLoader:
    """Settings that convert images to backbone inputs. Frozen and free of PyTorch, for use in threads and processes."""

    fit: ResizeSpec
    tile: int | Literal["square"] | None = None
    """Side of the tiles in image pixels; "square" = AnoCLIP's official setting for VisA: the image is resized until its
    shorter side is the input size, then cut into squares."""
    max_pixels: int = MAX_PIXELS
    value_range: ValueRange = FILE_RANGE
    """Value range of images with more than 8 bits."""
    roi: RegionOfInterest | None = None
    """What is inspected of every image."""

    def __post_init__(self) -> None:
        """Check the tile size."""
        if isinstance(self.tile, int) and self.tile < 16:
            raise UsageError(f"tile={self.tile}; tiles are at least 16 image pixels wide")

    @property
    def preparation(self) -> str:
        """Return a description of tiling and resizing: equal descriptions give equal inputs of equal images."""
        tiles = "whole" if self.tile is None else f"tiles of {self.tile}"
        tiles = "squares of the resized image" if self.tile == "square" else tiles
        values = self.value_range
        depth = "" if values.bit_depth is None else f", {values.bit_depth} bits"
        window = "" if values.window is None else f", window {values.window[0]:g} to {values.window[1]:g}"
        return f"{self.fit.aspect}, {self.fit.interpolation}, {tiles}{depth}{window}"

    def settings(self) -> dict[str, Any]:
        """Return the settings that scores depend on, as JSON-serializable values."""
        return {
            "aspect": self.fit.aspect,
            "interpolation": self.fit.interpolation,
            "tile": self.tile,
            "max_pixels": self.max_pixels,
            "bit_depth": self.value_range.bit_depth,
            "window": None if self.value_range.window is None else list(self.value_range.window),
            **({} if self.roi is None else {"roi": self.roi.digest}),
        }

    def read(self, source: Source, name: str | None = None) -> PreparedImage:
        """Decode and tile one image.

        Raises:
            ImageError: it cannot be read; the message contains its name and the remedy.
        """
        options: dict[str, Any] = {"max_pixels": self.max_pixels, "value_range": self.value_range}
        if isinstance(source, str | Path):
            path = Path(source)
            label = name or path.name
            decoded, digest = load_image(path, **options)
            pixels, notes = decoded.pixels, decoded.notes
            again: Callable[[], NDArray[np.uint8]] = partial(_reread, path, **options)
        elif isinstance(source, bytes):
            label = name or "image"
            decoded = decode(source, name=label, **options)
            pixels, notes = decoded.pixels, decoded.notes
            again = partial(decode_image, source, name=label, **options)
            digest = hashlib.sha256(source).hexdigest()
        else:
            label = name or "image"
            said: list[str] = []
            pixels = to_pixels(source, name=label, notes=said, **options)
            digest, again, notes = hash_pixels(pixels), partial(_same, pixels), tuple(said)
        height, width = pixels.shape[:2]
        thumbnail = make_thumbnail(pixels)
        if float(thumbnail.std(axis=(0, 1)).max()) < MIN_CONTRAST:
            notes = (
                *notes,
                f"nearly constant (grey level {thumbnail.mean():.0f}): nothing can be seen; check the camera",
            )
        if self.tile == "square":  # the official VisA order: resize, then cut
            cut = self.fit.shrink_to_side(pixels)
            tiles = plan_tiles(cut.shape[0], cut.shape[1], "square")
            pieces = np.stack([cut[t.slices] for t in tiles])
        else:
            tiles = [Tile(0, 0, height, width)] if self.tile is None else plan_tiles(height, width, self.tile)
            pieces = np.stack([self.fit.apply(np.ascontiguousarray(pixels[t.slices])) for t in tiles])
        return PreparedImage(label, digest, height, width, tiles, pieces, thumbnail, again, notes)

    def stitch_tiles(self, image: PreparedImage, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Stitch the tiles' maps (n, s, s) of any size s to one map (h, w) of the whole image, at their resolution."""
        parts = [
            self.fit.undo(one, tile.height, tile.width) for one, tile in zip(maps, image.tiles, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        from clipspect.postprocess.maps import resize_map

        side = max(max(t.height, t.width) for t in image.tiles)
        scale = min(1.0, maps.shape[-1] / side)
        tiles = [_scaled(tile, scale) for tile in image.tiles]
        size = (max(t.top + t.height for t in tiles), max(t.left + t.width for t in tiles))
        sized = [resize_map(part, tile.height, tile.width) for part, tile in zip(parts, tiles, strict=True)]
        return blend_tiles(sized, tiles, size, taper=self.tile != "square")

    def cell_places(
        self, image: PreparedImage, tile: Tile, cells: tuple[int, int], grid: tuple[int, int]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return where the rows and columns of a map of the whole image lie on a tile's patch grid.

        Args:
            image: that the tile is cut from.
            tile: one of its tiles.
            cells: (h, w) of the map.
            grid: (H, W) of the tile's patches.

        Returns:
            (h,) patch rows and (w,) patch columns; −1 where the tile does not reach.
        """
        top, left, height, width = self.fit.content(tile.height, tile.width)
        whole = image.tiled_size

        def place(axis: int, start: int, length: int, first: int, inner: int) -> NDArray[np.intp]:
            share = ((np.arange(cells[axis]) + 0.5) * whole[axis] / cells[axis] - start) / length
            patches = ((first + share * inner) * grid[axis] / self.fit.size).astype(np.intp)
            return np.where((share >= 0) & (share < 1), patches, -1)

        return place(0, tile.top, tile.height, top, height), place(1, tile.left, tile.width, left, width)

    def aggregate_scores(self, scores: NDArray[np.float32]) -> float:
        """Return one image score from the tiles' scores: the maximum, or for "square" tiles the mean, as published."""
        return float(scores.mean() if self.tile == "square" else scores.max())


def _scaled(tile: Tile, scale: float) -> Tile:
    top, left = round(tile.top * scale), round(tile.left * scale)
    bottom, right = round((tile.top + tile.height) * scale), round((tile.left + tile.width) * scale)
    return Tile(top, left, bottom - top, right - left)


def _reread(path: Path, **options: Any) -> NDArray[np.uint8]:
    return read_image(path, **options)[0]


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def is_many(source: object) -> bool:
    """Return whether something is a collection of sources; arrays, bytes, tensors and PIL images are one each."""
    one = isinstance(source, np.ndarray | bytes) or hasattr(source, "detach") or hasattr(source, "getexif")
    return isinstance(source, Iterable) and not one


def hash_source(source: Source) -> str:
    """Return a content hash even for a file that cannot be decoded; empty if it cannot be read at all."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if not isinstance(source, str | Path):
        return ""
    try:
        return hash_file(Path(source))
    except ImageError:
        return ""
