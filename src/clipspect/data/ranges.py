"""Scaling of pixel values of any depth to 8 bits: declared ranges are applied, missing ones are reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.errors import ImageError, UsageError

EIGHT_BITS, SIXTEEN_BITS = 255, 65535
USUAL_DEPTHS = (10, 12, 14)
"""Camera bit depths whose values are stored in 16-bit files."""
READ_AS_8_BITS = (
    "No value of this 16-bit image exceeds 255, so it was read as 8 bits; bit depth 16 reads it at full scale"
    " (--bit-depth 16, bit_depth=16)."
)
_LARGEST_TABLE = 1 << 16
_STRIP = 64
"""Number of rows scaled at once, because floats of a whole image need several times its size."""


@dataclass(frozen=True)
class ValueRange:
    """Values that are black and white in images with more than 8 bits, if the files do not declare them."""

    bit_depth: int | None = None
    """Bits per value: 12 maps 0…4095 to 0…255. None: the file's declared depth, or its container's depth."""
    window: tuple[float, float] | None = None
    """(low, high): values up to low are black, values from high are white."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.bit_depth is not None and self.window is not None:
            raise UsageError("bit_depth and window both set the value range; use one of them")
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 32:
            raise UsageError(f"bit_depth={self.bit_depth}; image values have 8 to 32 bits")
        if self.window is not None:
            low, high = self.window
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"window={low:g},{high:g}; the first number must be below the second")


FILE_RANGE = ValueRange()
"""Declared depth of the file."""


def scale_to_bytes(
    values: NDArray[Any],
    name: str,
    value_range: ValueRange = FILE_RANGE,
    *,
    bits: int | None = None,
    notes: list[str] | None = None,
    float_range: str = "float images hold values within [0, 1]; pass --window low,high for others",
) -> NDArray[np.uint8]:
    """Scale values to 0…255, rounded to the nearest level.

    Args:
        values: any shape; boolean, integer or float.
        name: name of the image, for errors.
        value_range: settings of the run; they do not apply to images of 8 bits.
        bits: depth that the file declares.
        notes: receives a sentence if the depth is not declared and looks wrong.
        float_range: text on the expected floats, for errors.

    Returns:
        Values of the same shape.

    Raises:
        ImageError: values outside the range that their type, the file or ``value_range`` allows.
    """
    if values.size == 0:
        return values.astype(np.uint8)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f":
        return _scale_floats(values, name, value_range, float_range)
    if values.dtype.kind not in "iu":
        raise ImageError(name, f"holds values of type {values.dtype}; save it with 8 or 16 bits")
    container = 8 * values.dtype.itemsize
    depth = min(bits or container, container)
    low, high = int(values.min()), int(values.max())
    if value_range.window is not None and (depth > 8 or low < 0):
        return _scale(values, low, high, *value_range.window)
    if low < 0:
        raise ImageError(
            name, f"signed values from {low} to {high}; say what is black and white with --window low,high"
        )
    if depth <= 8:
        full = _full_scale(depth, values.dtype.kind)
        return (
            values.astype(np.uint8, copy=False) if full == EIGHT_BITS else _scale(values, low, high, 0, full)
        )
    if value_range.bit_depth is not None:
        full = 2**value_range.bit_depth - 1
        if high > full:
            raise ImageError(
                name,
                f"holds values up to {high}, and bit depth {value_range.bit_depth} ends at {full}; raise it",
            )
    else:
        full = _declared_scale(values.dtype.kind, depth, high, name, notes)
    return _scale(values, low, high, 0, full)


def scale_opacity(
    values: NDArray[Any], name: str, value_range: ValueRange = FILE_RANGE, *, bits: int | None = None
) -> NDArray[np.uint8]:
    """Scale an alpha channel to 0…255 by its type's range, or by ``value_range`` if it fits.

    Raises:
        ImageError: floats outside [0, 1], or signed values.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize == 1:
        return scale_to_bytes(values, name, bits=bits)
    high = int(values.max(initial=0))
    if value_range.bit_depth is not None and high < 2**value_range.bit_depth:
        return scale_to_bytes(values, name, value_range)
    if high > SIXTEEN_BITS:
        return scale_to_bytes(values, name, ValueRange(bit_depth=32))
    return scale_to_bytes(values, name, bits=bits if bits is not None and high < 2**bits else None)


def usable_depth(values: NDArray[Any], depths: Sequence[int]) -> int | None:
    """Return the smallest declared depth that all values fit; None if it is not below the depth of their type."""
    container = 8 * values.dtype.itemsize
    if values.dtype.kind != "u" or not depths or not values.size:
        return None
    high = int(values.max())
    return min((bits for bits in depths if 8 < bits < container and high < 2**bits), default=None)


def _declared_scale(kind: str, depth: int, high: int, name: str, notes: list[str] | None) -> int:
    """Return the value of white, without settings of the run."""
    if depth not in (16, 32, 64):
        return _full_scale(depth, kind)  # 10, 12, 14: deliberate declarations
    if depth > 16 and high > SIXTEEN_BITS:
        raise ImageError(
            name,
            f"{depth}-bit values up to {high}, and no depth is declared; save it with 8 or 16 bits, or pass"
            " --bit-depth or --window low,high",
        )
    if 1 < high <= EIGHT_BITS:
        if notes is not None:
            notes.append(READ_AS_8_BITS)
        return EIGHT_BITS
    full = _full_scale(16, kind) if depth == 16 else SIXTEEN_BITS
    likely = next((bits for bits in USUAL_DEPTHS if high < 2**bits), None)
    if likely is not None and high > 1 and notes is not None:
        notes.append(
            f"No value of this 16-bit image reaches {2**likely}, so it is dark at full scale ({full}); if the"
            f" camera has {likely} bits, pass --bit-depth {likely} (bit_depth={likely}) or --window low,high."
        )
    return full


def _full_scale(bits: int, kind: str) -> int:
    return int(2 ** (bits - (kind == "i")) - 1)


def _scale(values: NDArray[Any], low: int, high: int, black: float, white: float) -> NDArray[np.uint8]:
    """Scale integers within low…high to bytes, ``black`` to 0 and ``white`` to 255; small ranges use a table."""

    def levels(numbers: NDArray[Any]) -> NDArray[np.uint8]:
        share = np.clip((numbers.astype(np.float64) - black) / (white - black), 0, 1)
        return (share * 255 + 0.5).astype(np.uint8)

    if high - low < _LARGEST_TABLE:
        table = levels(np.arange(low, high + 1))
        return np.asarray(table[values if low == 0 else values.astype(np.int64) - low])
    return _by_strips(values, levels)


def _scale_floats(
    values: NDArray[Any], name: str, value_range: ValueRange, float_range: str
) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(name, f"holds NaN or infinite values; {float_range}")
    black, white = value_range.window or (0.0, 1.0)
    if value_range.window is None and (
        low < -1e-3 or high > 1 + 1e-3
    ):  # tolerance for rounding errors of resampling
        raise ImageError(name, f"holds values from {low:.4g} to {high:.4g}; {float_range}")
    # at least float32, because float16 has no 255.5
    kind: Any = np.float64 if values.dtype.itemsize > 4 else np.float32

    def levels(numbers: NDArray[Any]) -> NDArray[np.uint8]:
        share = np.clip((numbers.astype(kind) - kind(black)) / kind(white - black), 0, 1)
        return np.asarray(share * 255 + 0.5).astype(np.uint8)

    return _by_strips(values, levels)


def _by_strips(
    values: NDArray[Any], levels: Callable[[NDArray[Any]], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    if values.ndim == 0:
        return levels(values)
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _STRIP):
        scaled[top : top + _STRIP] = levels(values[top : top + _STRIP])
    return scaled
