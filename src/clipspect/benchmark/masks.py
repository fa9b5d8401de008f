"""Ground-truth masks: read, made binary, and brought to the size the maps are compared at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.errors import ImageError


@dataclass(frozen=True)
class Mask:
    """Where an image is defective."""

    pixels: NDArray[np.bool_]
    """(H, W)."""
    grey: bool = False
    """Whether the file held shades of grey, which were cut in the middle."""


def read_mask(path: Path, height: int, width: int) -> Mask:
    """The mask of an image of that height and width.

    What is not 0 is defective, as anomalib reads it, also where kinds of defects are numbered 1, 2, 3 … A mask in
    shades of grey (antialiased, or saved as JPEG) is cut at half its brightest value instead: its faint rim is no
    defect.

    Raises:
        ImageError: it cannot be read, or has another size than the image.
    """
    try:
        with Image.open(path) as stored:
            values = np.asarray(stored if stored.mode in ("L", "I", "I;16", "F") else stored.convert("L"))
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        detail = str(error).strip() or type(error).__name__
        raise ImageError(path.name, f"its mask {path} cannot be read ({detail}); export it again") from error
    if values.shape != (height, width):
        raise ImageError(
            path.name,
            f"its mask {path} is {values.shape[1]}×{values.shape[0]} pixels and the image {width}×{height};"
            " export the mask at the image's own size",
        )
    grey = _is_grey(values)
    return Mask(values > values.max() / 2 if grey else values > 0, grey)


def _is_grey(values: NDArray[np.generic]) -> bool:
    """Whether values spread over the whole range, as shades do, and numbers of kinds do not."""
    levels = np.unique(values)
    return len(levels) > 2 and float(levels[-1]) > 127


def fit_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) → (height, width), nearest neighbour by pixel centres: what a map of that size is compared with."""
    if mask.shape == (height, width):
        return mask
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
    return np.asarray(mask[rows[:, None], columns])
