"""Ground-truth masks: reading, binarization, and resizing to the size of the anomaly maps."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.data.convert import orientation_of, upright
from clipspect.data.decode import FORMATS, count_pages, decode, deep_png_values, is_deep_png, read_file
from clipspect.data.tiff import is_tiff, read_tiff_bands
from clipspect.errors import ImageError

MAX_CLASSES = 16
"""Maximum number of levels that count as kinds of defects; more levels are gray shades."""
NOISE = 8
"""Distance to black or white below which levels count as compression noise, if there are several of them."""
LOSSY_SHARE = 1 / 3
"""Share of the maximum above which a level of a lossy file is defective: above ringing, below a second class of half
the brightness."""
_LOSSY = ("JPEG", "MPO")
_LOSSY_WEBP = b"VP8 "

Kind = Literal["grey", "colour", "lossy"]
"""Content type of a mask file, which decides how its levels are interpreted."""


@dataclass(frozen=True)
class Mask:
    """Defective pixels of an image."""

    pixels: NDArray[np.bool_]
    """(H, W)."""
    grey: bool = False
    """Whether the file held gray shades, which were thresholded."""

    @property
    def empty(self) -> bool:
        """Whether no pixel is defective."""
        return not self.pixels.any()

    @property
    def full(self) -> bool:
        """Whether every pixel is defective."""
        return bool(self.pixels.all())


def read_mask(path: Path, height: int, width: int) -> Mask:
    """Read the mask of an image.

    Pixels that are nonzero in any channel are defective, whatever their color or class number; NaN is not. If
    transparency varies, opaque pixels are defective. A palette counts by its colors if they include black, else by its
    indices, and white is the background if its index is not 0. A mask with many gray shades (antialiased) is
    thresholded at half its maximum value, because its faint rim is not defective, and one in a lossy format (JPEG,
    lossy WebP, TIFF with JPEG) at a third. An EXIF orientation is applied.

    Args:
        path: the mask's file.
        height: height of the upright image in pixels.
        width: width of the upright image in pixels.

    Raises:
        ImageError: the mask cannot be read, or its size differs from the image's.
    """
    try:
        data = read_file(path, str(path))
        if (pages := count_pages(data)) > 1:
            raise ImageError(
                path.name, f"its mask {path} has {pages} pages; export one mask with all of its defects"
            )
        levels, kind = _levels(data)
    except ImageError:
        raise
    except Exception as error:  # Pillow and tifffile raise arbitrary exceptions for damaged files
        detail = str(error).strip() or type(error).__name__
        raise ImageError(path.name, f"its mask {path} cannot be read ({detail}); export it again") from error
    if levels.shape != (height, width):
        raise ImageError(
            path.name,
            f"its mask {path} is {levels.shape[1]}×{levels.shape[0]} pixels and the image {width}×{height};"
            " export the mask at the image's size"
            + (", rotated by the image's EXIF orientation" if levels.shape == (width, height) else ""),
        )
    if not _is_grey(levels, kind):
        return Mask(levels != 0)
    return Mask(levels > levels.max() * (LOSSY_SHARE if kind == "lossy" else 0.5), grey=True)


def _levels(data: bytes) -> tuple[NDArray[Any], Kind]:
    """Return (H, W) levels, upright, 0 where nothing is defective; and the content type."""
    if is_tiff(data):
        return _tiff_levels(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        if is_deep_png(data):
            bands = deep_png_values(data)
            colours = 3 if bands.shape[2] >= 3 else 1
            values, alpha = bands[:, :, :colours], bands[:, :, colours] if bands.shape[2] > colours else None
        elif image.mode == "P" and "transparency" not in image.info:
            values, alpha = _by_palette(np.asarray(image), np.asarray(image.convert("RGB"))), None
        elif image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            values, alpha = rgba[:, :, :3], rgba[:, :, 3]
        else:
            kept = image.mode in ("1", "L", "F", "RGB") or image.mode.startswith("I")
            stored = np.asarray(image if kept else image.convert("RGB"))
            values, alpha = stored if stored.ndim == 3 else stored[:, :, None], None
        lossy = image.format in _LOSSY or (image.format == "WEBP" and _LOSSY_WEBP in data)
        kind: Kind = "lossy" if lossy else _kind(values)
        return upright(_by_meaning(values, alpha), orientation_of(image)), kind


def _tiff_levels(data: bytes) -> tuple[NDArray[Any], Kind]:
    bands = read_tiff_bands(data)
    if bands is None:  # color spaces that are converted
        pixels = decode(data, name="mask").pixels
        return _by_meaning(pixels, None), "lossy"
    colours = bands.colours
    if bands.palette is not None:
        colours = _by_palette(colours[:, :, 0], bands.palette)
    kind: Kind = "lossy" if bands.lossy else _kind(colours)
    return upright(_by_meaning(colours, bands.alpha), bands.orientation), kind


def _by_palette(indices: NDArray[Any], colours: NDArray[Any]) -> NDArray[Any]:
    """Return the colors (H, W, 3) of a palette that has a black background, else the indices (H, W, 1).

    Without black, white is the background if its index is not 0: programs that reduce a drawing sort colors.
    """
    black, white = ~colours.any(axis=2), (colours == 255).all(axis=2)
    levels: NDArray[Any] = indices
    if black.any() and not (black.all() and np.ptp(indices) > 0):
        return colours
    if white.any() and not white.all() and indices[white].min() > 0:
        levels = ~white
    return levels[:, :, None]


def _kind(values: NDArray[Any]) -> Kind:
    return "colour" if values.shape[2] >= 3 and np.ptp(values, axis=2).any() else "grey"


def _by_meaning(colours: NDArray[Any], alpha: NDArray[Any] | None) -> NDArray[Any]:
    """Return (H, W) levels of (H, W, bands): transparency if it varies, else the brightest band."""
    if alpha is not None and alpha.min() < alpha.max() and not alpha.all():
        return alpha
    levels: NDArray[Any] = (np.abs(colours) if colours.dtype.kind in "if" else colours).max(axis=2)
    return np.nan_to_num(levels) if levels.dtype.kind == "f" else levels


def _is_grey(levels: NDArray[Any], kind: Kind) -> bool:
    """Return whether levels are gray shades up to the type's maximum, and not class numbers or colors."""
    found = np.unique(levels)
    brightest = float(found[-1])
    if kind == "lossy":
        return len(found) > 2 and brightest > MAX_CLASSES
    if len(found) <= 2 or brightest <= _full_scale(levels, brightest) / 2:
        return False
    noisy = len(found) > 4 and bool(((found < NOISE) | (found > brightest - NOISE)).all())
    return noisy or (kind == "grey" and len(found) > MAX_CLASSES)


def _full_scale(levels: NDArray[Any], brightest: float) -> float:
    if levels.dtype.kind == "f":
        return 1 if brightest <= 1 else 255
    return 255 if levels.dtype.itemsize == 1 or brightest <= 255 else 65535


def fit_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Resize a mask (H, W) to the map size (height, width), nearest neighbor by pixel centers."""
    if mask.shape == (height, width):
        return mask
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
    return np.asarray(mask[rows[:, None], columns])
