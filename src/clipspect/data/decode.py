"""Image files to pixels: any common format and mode, one kind of error for all that can go wrong."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clipspect.data.convert import MAX_PIXELS, SMALLER, check_size, pil_to_pixels
from clipspect.errors import ImageError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Pillow's names of the formats that are read, told by content and never by file name."""
MAX_FILE_BYTES = 2 * 1024**3

# Our own limit is checked from the header and stated in the error. Pillow's lower one only warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], str]:
    """Pixels (H, W, 3) RGB and the SHA-256 (hex) of the file's bytes, from one read of the file.

    Raises ImageError as ``decode_image``.
    """
    data = read_file(path, str(path))
    return decode_image(data, name=str(path), max_pixels=max_pixels), hashlib.sha256(data).hexdigest()


def decode_image(source: Path | bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 RGB, C-contiguous, upright after EXIF orientation; the first frame of several.

    Modes and their scaling are those of ``convert.pil_to_pixels``. The number of pixels is checked from the
    header, before anything is decoded.

    Raises ImageError: missing, unreadable, empty, damaged, not an image, more than ``max_pixels`` pixels.
    """
    data = read_file(source, name) if isinstance(source, Path) else source
    if not data:
        raise ImageError(name, "the file is empty (0 bytes); copy it again from its source")
    _let_pillow_read(max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.width, image.height, name, max_pixels)
            return pil_to_pixels(image, name, max_pixels=max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            name,
            "not a JPEG, PNG, TIFF, BMP or WebP image, or damaged from its first bytes on; "
            "convert it to one of these, or take it out of the folder",
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(name, f"more than {max_pixels:,} pixels, the limit; {SMALLER}") from None
    except MemoryError:
        raise ImageError(name, "not enough memory to decode it; scale it down or cut it into parts") from None
    except Exception as error:  # SyntaxError, struct.error, KeyError … on damaged files
        detail = str(error).strip() or type(error).__name__
        raise ImageError(name, f"damaged or cut short ({detail}); copy or export it again") from error


def _let_pillow_read(max_pixels: int) -> None:
    """Pillow refuses by itself what has more than twice its own limit, which follows ours where that was raised."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces. Raises ImageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(
            str(path), f"cannot be read ({error.strerror or error}); check the path and the disk"
        ) from error


def read_file(path: Path, name: str) -> bytes:
    """A file's bytes. Raises ImageError: missing, not a regular file, too large, may not be read."""
    try:
        if path.is_dir():
            raise ImageError(name, "is a folder; give the path of one image")
        if not path.exists():
            raise ImageError(name, "no such file; check the path")
        if not path.is_file():
            raise ImageError(name, "not a regular file; give the path of one image")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(
                name, f"larger than {MAX_FILE_BYTES // 1024**3} GiB, the limit; export it smaller"
            )
        return path.read_bytes()
    except PermissionError as error:
        raise ImageError(name, "may not be read; give yourself permission to read it") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(name, f"cannot be read ({error}); check the path and the disk") from error
