"""Pictures in memory (Pillow, NumPy, torch) to the one form every later step takes: (H, W, 3) uint8 RGB.

Ranges: 8 bits stay as they are; 16 bits are scaled by the full range (65535 → 255, whatever values occur, so
that all images of a run are treated alike); floats must lie within [0, 1] and are multiplied by 255.
Anything else is refused: a guessed range would make the scores of two images incomparable.

Transparency is composited on white, which is how viewers and web pages show it; the colour stored under
transparent pixels is arbitrary and must not reach a detector. Embedded colour profiles are not applied.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipspect.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
"""Most pixels of one image (10,000 × 10,000): larger headers are refused before decoding."""

SMALLER = "scale it down, cut it into parts, or raise the limit (--max-pixels) where memory allows"
WANTED = "wanted is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16 or float within [0, 1]"
WANTED_TENSOR = "wanted is one image (3, H, W), (1, H, W) or (H, W, 3), uint8 or float within [0, 1]"

EXIF_ORIENTATION = 0x0112
_STRIP = 64
"""Rows composited at once."""


def to_pixels(source: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 RGB, C-contiguous, of a Pillow image, a NumPy array or a torch tensor.

    Arrays are (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16 or float within [0, 1];
    tensors (3, H, W), (1, H, W) or (H, W, 3). ``name`` stands for the picture in errors.

    Raises ImageError, saying which shape or range is wanted.
    """
    if isinstance(source, np.ndarray):
        return _array_to_pixels(source, name, WANTED, max_pixels)
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        return _tensor_to_pixels(source, name, max_pixels)
    if hasattr(source, "getexif") and hasattr(source, "mode"):
        check_size(source.width, source.height, name, max_pixels)
        try:
            return pil_to_pixels(source, name, max_pixels=max_pixels)
        except ImageError:
            raise
        except Exception as error:  # a lazily opened file: decoders raise anything on damaged data
            raise ImageError(name, f"damaged or cut short ({error}); copy or export it again") from error
    raise ImageError(
        name, f"cannot read a {type(source).__name__}; give a path, a Pillow image, an array or a tensor"
    )


def hash_pixels(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) over the shape and the bytes of a picture that has no file."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def check_size(width: int, height: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError for a picture without pixels or with more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width} × {height}); take it out or export it again")
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"{width:,} × {height:,} is {width * height:,} pixels, more than the limit of {max_pixels:,}; {SMALLER}",
        )


def pil_to_pixels(image: Image.Image, name: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 RGB of the current frame of a Pillow image, upright after EXIF orientation.

    Decoding errors of Pillow pass through; ImageError for what decodes but cannot be used.
    """
    image.load()
    check_size(image.width, image.height, name, max_pixels)  # a damaged header may promise another size
    orientation = _orientation(image)
    if image.mode == "F":
        pixels = _array_to_pixels(
            np.asarray(image), name, "float images hold values within [0, 1]", max_pixels
        )
    elif image.mode.startswith("I"):
        pixels = _array_to_pixels(_sixteen_bits(np.asarray(image), name), name, WANTED, max_pixels)
    elif image.has_transparency_data:
        pixels = _over_white(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return np.ascontiguousarray(_upright(pixels, orientation))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata beside good pixels: the image is read as it lies
        return 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _sixteen_bits(values: NDArray[Any], name: str) -> NDArray[np.uint16]:
    """Grey values of Pillow's integer modes, which hold 16 bits in 16 or in 32."""
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        raise ImageError(name, "32-bit values outside 0…65535; save it with 8 or 16 bits")
    return values.astype(np.uint16)


def _array_to_pixels(values: NDArray[Any], name: str, wanted: str, max_pixels: int) -> NDArray[np.uint8]:
    given = f"got shape {values.shape} of {values.dtype}"
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise ImageError(name, f"{given}; {wanted}")
    check_size(values.shape[1], values.shape[0], name, max_pixels)
    if values.dtype.newbyteorder("=") == np.uint16:
        # 65535 = 255 · 257, so this rounds to the nearest of 256 levels
        values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif values.dtype.kind == "f":
        values = _unit_to_bytes(values, name, wanted)
    elif values.dtype != np.uint8:
        raise ImageError(name, f"{given}; {wanted}")
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] == 4:
        return _over_white(values)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _unit_to_bytes(values: NDArray[Any], name: str, wanted: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(name, f"holds NaN or infinite values; {wanted}")
    if low < -1e-3 or high > 1 + 1e-3:  # resampling overshoots by rounding only
        raise ImageError(name, f"holds values from {low:.4g} to {high:.4g}; {wanted}")
    # float32, because float16 has no 255.5 and float64 would only cost memory
    return (np.clip(values.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = np.empty((*rgba.shape[:2], 3), np.uint8)
    # 16-bit values of a whole image at once would be several times its size
    for top in range(0, len(rgba), _STRIP):
        strip = rgba[top : top + _STRIP]
        alpha = strip[:, :, 3:].astype(np.uint16)
        blended = strip[:, :, :3] * alpha + 255 * (255 - alpha)
        pixels[top : top + _STRIP] = (blended + 127) // 255
    return pixels


def _tensor_to_pixels(tensor: Any, name: str, max_pixels: int) -> NDArray[np.uint8]:
    try:
        tensor = tensor.detach().cpu()
        values = np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    except (TypeError, RuntimeError, ValueError) as error:  # sparse, meta
        raise ImageError(name, f"the tensor cannot be read ({error}); {WANTED_TENSOR}") from error
    if values.ndim == 3 and values.shape[0] in (1, 3):  # torch's own order comes first where both would fit
        values = values.transpose(1, 2, 0)
    elif values.ndim != 3 or values.shape[2] != 3:
        raise ImageError(name, f"got a tensor of shape {values.shape}; {WANTED_TENSOR}")
    return _array_to_pixels(values, name, WANTED_TENSOR, max_pixels)
