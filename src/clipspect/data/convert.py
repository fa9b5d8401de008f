"""Conversion of images in memory (Pillow, NumPy, PyTorch) to (H, W, 3) uint8 RGB.

Ranges: 8-bit values stay unchanged, and deeper values are scaled as ``ranges`` defines. Floats must be within [0, 1]
and are multiplied by 255, unless a window is given. Other values are refused, because a guessed range would make the
scores of two images incomparable.

Transparency is composited on white, as viewers and web pages show it. The color stored under transparent pixels is
arbitrary and must not reach a detector. Embedded color profiles are not applied.

"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.ranges import FILE_RANGE, ValueRange, scale_opacity, scale_to_bytes
from clipspect.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
"""Maximum number of pixels of one image (10,000 × 10,000): larger headers are refused before decoding."""

SMALLER = "scale it down, cut it into parts, or raise the limit (--max-pixels) where memory allows"
WANTED = "wanted is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16 or float within [0, 1]"
WANTED_TENSOR = "wanted is one image (3, H, W), (1, H, W) or (H, W, 3), uint8 or float within [0, 1]"

EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_STRIP = 64
"""Number of rows composited at once."""


def to_pixels(
    source: Any,
    *,
    name: str = "image",
    max_pixels: int = MAX_PIXELS,
    value_range: ValueRange = FILE_RANGE,
    notes: list[str] | None = None,
) -> NDArray[np.uint8]:
    """Return C-contiguous pixels (H, W, 3) uint8 RGB of a Pillow image, a NumPy array or a PyTorch tensor.

    Arrays are (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16 or float within [0, 1]; tensors are
    (3, H, W), (1, H, W) or (H, W, 3). ``name`` identifies the image in errors. ``value_range`` and ``notes`` are those
    of :func:`~clipspect.data.ranges.scale_to_bytes`.

    Raises ImageError, with the expected shape or range.
    """
    if isinstance(source, np.ndarray):
        return _array_to_pixels(source, name, WANTED, max_pixels, value_range, notes)
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        return _tensor_to_pixels(source, name, max_pixels, value_range, notes)
    if hasattr(source, "getexif") and hasattr(source, "mode"):
        check_size(source.width, source.height, name, max_pixels)
        try:
            return pil_to_pixels(source, name, max_pixels=max_pixels, value_range=value_range, notes=notes)
        except ImageError:
            raise
        except (
            Exception
        ) as error:  # a lazily opened file: decoders raise arbitrary exceptions on damaged data
            raise ImageError(name, f"damaged or cut short ({error}); copy or export it again") from error
    raise ImageError(
        name, f"cannot read a {type(source).__name__}; give a path, a Pillow image, an array or a tensor"
    )


def hash_pixels(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 (hex) over the shape and the bytes of an image without a file."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def check_size(width: int, height: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ImageError for an image without pixels or with more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width} × {height}); take it out or export it again")
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"{width:,} × {height:,} is {width * height:,} pixels, more than the limit of {max_pixels:,}; {SMALLER}",
        )


def pil_to_pixels(
    image: Image.Image,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    value_range: ValueRange = FILE_RANGE,
    notes: list[str] | None = None,
) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) uint8 RGB of the current frame of a Pillow image, upright after EXIF orientation.

    Pillow's decoding errors pass through. Raises ImageError for data that decode but cannot be used.
    """
    image.load()
    check_size(image.width, image.height, name, max_pixels)  # a damaged header may state another size
    orientation = orientation_of(image)
    if image.mode == "F" or image.mode.startswith("I"):
        bits, white_is_zero = _tiff_declares(image)
        values = np.asarray(image)
        grey = scale_to_bytes(values, name, value_range, bits=bits, notes=notes)
        # Pillow inverts only 8-bit TIFF whose white is zero
        pixels = grey_to_rgb(255 - grey if white_is_zero else grey)
    elif image.has_transparency_data:
        pixels = over_white(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return np.ascontiguousarray(upright(pixels, orientation))


def grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) → (H, W, 3)."""
    return np.broadcast_to(grey[:, :, None], (*grey.shape, 3))


def _tiff_declares(image: Image.Image) -> tuple[int | None, bool]:
    """Return bits per value, and whether white is zero, of a TIFF file opened with Pillow."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None, False
    bits = tags.get(_TIFF_BITS)
    return int(bits[0]) if bits else None, tags.get(_TIFF_PHOTOMETRIC) == 0


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a Pillow image, 1 to 8; 1 if there is none."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata with good pixels: keep the stored orientation
        return 1


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return (H, W, …) pixels rotated and mirrored by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _array_to_pixels(
    values: NDArray[Any],
    name: str,
    wanted: str,
    max_pixels: int,
    value_range: ValueRange = FILE_RANGE,
    notes: list[str] | None = None,
) -> NDArray[np.uint8]:
    given = f"got shape {values.shape} of {values.dtype}"
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise ImageError(name, f"{given}; {wanted}")
    check_size(values.shape[1], values.shape[0], name, max_pixels)
    if values.dtype.kind != "f" and values.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ImageError(name, f"{given}; {wanted}")
    colours = 3 if values.ndim == 3 and values.shape[2] == 4 else None  # alpha keeps its type's range
    scaled = scale_to_bytes(values[..., :colours], name, value_range, notes=notes, float_range=wanted)
    if colours == 3:
        opacity = scale_opacity(values[:, :, 3:], name, value_range)
        return over_white(np.concatenate([scaled, opacity], axis=2))
    values = scaled
    if values.ndim == 2:
        values = values[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def over_white(rgba: NDArray[np.uint8], *, premultiplied: bool = False) -> NDArray[np.uint8]:
    """Composite (H, W, 4) on white, giving (H, W, 3); ``premultiplied`` if colors are stored times alpha."""
    pixels = np.empty((*rgba.shape[:2], 3), np.uint8)
    # strips, because 16-bit values of a whole image need several times its size
    for top in range(0, len(rgba), _STRIP):
        strip = rgba[top : top + _STRIP]
        alpha = strip[:, :, 3:].astype(np.uint16)
        colours = strip[:, :, :3] * (np.uint16(255) if premultiplied else alpha)
        blended = np.minimum(colours.astype(np.uint32) + 255 * (255 - alpha), 65025)
        pixels[top : top + _STRIP] = (blended + 127) // 255
    return pixels


def _tensor_to_pixels(
    tensor: Any, name: str, max_pixels: int, value_range: ValueRange, notes: list[str] | None
) -> NDArray[np.uint8]:
    try:
        tensor = tensor.detach().cpu()
        values = np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    except (TypeError, RuntimeError, ValueError) as error:  # sparse, meta
        raise ImageError(name, f"the tensor cannot be read ({error}); {WANTED_TENSOR}") from error
    if values.ndim == 3 and values.shape[0] in (1, 3):  # prefer PyTorch's axis order if both fit
        values = values.transpose(1, 2, 0)
    elif values.ndim != 3 or values.shape[2] != 3:
        raise ImageError(name, f"got a tensor of shape {values.shape}; {WANTED_TENSOR}")
    return _array_to_pixels(values, name, WANTED_TENSOR, max_pixels, value_range, notes)
