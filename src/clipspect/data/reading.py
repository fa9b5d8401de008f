"""read_image(): reads pixels for other programs exactly as clipspect does."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.data.convert import MAX_PIXELS, orientation_of
from clipspect.data.decode import is_deep_png, load_image
from clipspect.data.ranges import ValueRange
from clipspect.data.tiff import is_tiff


def read_image(
    path: str | Path,
    *,
    bit_depth: int | None = None,
    window: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Read an image file like ``detect``.

    EXIF orientation is applied, values of more than 8 bits are scaled, and transparency is composited on white. Notes
    for the user, such as on further pages, are Python warnings.

    Args:
        path: the file; ``scan.tif#2`` is its second page.
        bit_depth: bits of images that do not declare their depth.
        window: (low, high), the values of black and white in images with more than 8 bits.
        max_pixels: larger images are refused before decoding.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ImageError: the file cannot be read.
        UsageError: an invalid bit depth or window.
    """
    decoded, _ = load_image(Path(path), max_pixels=max_pixels, value_range=ValueRange(bit_depth, window))
    for note in decoded.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return decoded.pixels


def is_read_alike(path: Path) -> bool:
    """Return whether all readers give equal pixels: 8 bits, no orientation to apply, no transparency, no palette."""
    try:
        data = path.read_bytes()
        if is_tiff(data) or is_deep_png(data):
            return False
        with Image.open(io.BytesIO(data)) as image:
            transparent = image.has_transparency_data
            return image.mode in ("L", "RGB") and not transparent and orientation_of(image) == 1
    except Exception:  # the reader reports the error
        return True
