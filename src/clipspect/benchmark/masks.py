"""Ground-truth masks: read, made binary, and brought to the size the maps are compared at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.data.convert import orientation_of, upright
from clipspect.data.decode import FORMATS, read_file
from clipspect.data.tiff import is_tiff, read_tiff_bands
from clipspect.errors import ImageError

MAX_CLASSES = 16
"""Most levels of a mask whose levels are kinds of defects; more of them are shades of grey."""
NOISE = 8
"""Levels nearer to black or white than this are noise of a lossy format, where there are several of them."""
_LOSSY = ("JPEG", "MPO")

Kind = Literal["grey", "colour", "lossy"]
"""What a mask's file holds, by which its levels are judged."""


@dataclass(frozen=True)
class Mask:
    """Where an image is defective."""

    pixels: NDArray[np.bool_]
    """(H, W)."""
    grey: bool = False
    """Whether the file held shades of grey, which were cut in the middle."""

    @property
    def empty(self) -> bool:
        """Whether nothing is defective."""
        return not self.pixels.any()

    @property
    def full(self) -> bool:
        """Whether everything is defective."""
        return bool(self.pixels.all())


def read_mask(path: Path, height: int, width: int) -> Mask:
    """Read the mask of an image.

    What is not 0 in any channel is defective, whatever its colour or class number. Where transparency varies, what is
    not transparent is defective. A palette counts by its colours where black is among them, else by its indices. A mask
    in many shades (antialiased, or saved as JPEG) is cut at half its brightest value instead: its faint rim is no
    defect. An EXIF orientation is applied.

    Args:
        path: the mask's file.
        height: of the image, upright.
        width: of the image, upright.

    Raises:
        ImageError: it cannot be read, or has another size than the image.
    """
    try:
        levels, kind = _levels(read_file(path, str(path)))
    except ImageError:
        raise
    except Exception as error:  # Pillow and tifffile raise whatever a damaged file makes them stumble over
        detail = str(error).strip() or type(error).__name__
        raise ImageError(path.name, f"its mask {path} cannot be read ({detail}); export it again") from error
    if levels.shape != (height, width):
        raise ImageError(
            path.name,
            f"its mask {path} is {levels.shape[1]}×{levels.shape[0]} pixels and the image {width}×{height};"
            " export the mask at the image's own size"
            + (", turned as the image's EXIF orientation says" if levels.shape == (width, height) else ""),
        )
    grey = _is_grey(levels, kind)
    return Mask(levels > levels.max() / 2 if grey else levels != 0, grey)


def _levels(data: bytes) -> tuple[NDArray[Any], Kind]:
    """(H, W) levels, 0 where nothing is defective, upright; and what the file is."""
    if is_tiff(data) and (bands := read_tiff_bands(data)) is not None:
        return upright(_by_meaning(bands.colours, bands.alpha), bands.orientation), _kind(bands.colours)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        if image.mode == "P" and "transparency" not in image.info:
            indices = np.asarray(image)
            colours = np.asarray(image.convert("RGB"))
            black = not colours.any(axis=2).all()
            values, alpha = colours if black else indices[:, :, None], None
        elif image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            values, alpha = rgba[:, :, :3], rgba[:, :, 3]
        else:
            kept = image.mode in ("1", "L", "F", "RGB") or image.mode.startswith("I")
            stored = np.asarray(image if kept else image.convert("RGB"))
            values, alpha = stored if stored.ndim == 3 else stored[:, :, None], None
        kind: Kind = "lossy" if image.format in _LOSSY else _kind(values)
        return upright(_by_meaning(values, alpha), orientation_of(image)), kind


def _kind(values: NDArray[Any]) -> Kind:
    return "colour" if values.shape[2] >= 3 and np.ptp(values, axis=2).any() else "grey"


def _by_meaning(colours: NDArray[Any], alpha: NDArray[Any] | None) -> NDArray[Any]:
    """(H, W) levels of (H, W, bands): transparency where it varies, else the brightest band."""
    if alpha is not None and alpha.min() < alpha.max() and not alpha.all():
        return alpha
    levels: NDArray[Any] = (np.abs(colours) if colours.dtype.kind in "if" else colours).max(axis=2)
    return levels


def _is_grey(levels: NDArray[Any], kind: Kind) -> bool:
    """Whether levels are shades up to the type's brightest value, and not numbers or colours of kinds."""
    found = np.unique(levels)
    brightest = float(found[-1])
    if len(found) <= 2 or brightest <= _full_scale(levels, brightest) / 2:
        return False
    noisy = len(found) > 4 and bool(((found < NOISE) | (found > brightest - NOISE)).all())
    return kind == "lossy" or noisy or (kind == "grey" and len(found) > MAX_CLASSES)


def _full_scale(levels: NDArray[Any], brightest: float) -> float:
    if levels.dtype.kind == "f":
        return 1 if brightest <= 1 else 255
    return 255 if levels.dtype.itemsize == 1 or brightest <= 255 else 65535


def fit_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) → (height, width), nearest neighbour by pixel centres: what a map of that size is compared with."""
    if mask.shape == (height, width):
        return mask
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
    return np.asarray(mask[rows[:, None], columns])
