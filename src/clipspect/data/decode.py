"""Decoding of image files: all common formats and modes, with one exception type for all failures."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clipspect.data.convert import (
    MAX_PIXELS,
    SMALLER,
    check_size,
    grey_to_rgb,
    orientation_of,
    over_white,
    pil_to_pixels,
    upright,
)
from clipspect.data.formats import DICOM, need, sniff_extra
from clipspect.data.ranges import FILE_RANGE, ValueRange, scale_opacity, scale_to_bytes, usable_depth
from clipspect.data.tiff import count_tiff_pages, decode_tiff, is_tiff
from clipspect.errors import ImageError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
"""Pillow's names of the formats that are always supported, detected by content and never by file name."""
MAX_FILE_BYTES = 2 * 1024**3
_PAGE = re.compile(r"(.+)#([1-9]\d*)", re.DOTALL)
_JPEG_START = b"\xff\xd8"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Offset of the bits per value in the header of a PNG file."""

# clipspect checks its own limit from the header. Pillow's lower limit only warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Decoded:
    """Decoded image, with notes for the user."""

    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB, C-contiguous, upright."""
    notes: tuple[str, ...] = ()


def load_image(
    path: Path, *, max_pixels: int = MAX_PIXELS, value_range: ValueRange = FILE_RANGE
) -> tuple[Decoded, str]:
    """Decode a file and hash the same bytes (see :func:`hash_file`), from one read of the file.

    Raises ImageError like :func:`decode`.
    """
    file, page = split_page(path)
    data = read_file(file, str(path))
    decoded = decode(data, name=str(path), max_pixels=max_pixels, value_range=value_range, page=page)
    return decoded, _page_hash(hashlib.sha256(data), page)


def read_image(
    path: Path, *, max_pixels: int = MAX_PIXELS, value_range: ValueRange = FILE_RANGE
) -> tuple[NDArray[np.uint8], str]:
    """Return pixels (H, W, 3) RGB and the hash of :func:`load_image`."""
    decoded, digest = load_image(path, max_pixels=max_pixels, value_range=value_range)
    return decoded.pixels, digest


def decode_image(
    source: Path | bytes, *, name: str, max_pixels: int = MAX_PIXELS, value_range: ValueRange = FILE_RANGE
) -> NDArray[np.uint8]:
    """Return the pixels of :func:`decode`, for a file or its bytes."""
    if isinstance(source, Path):
        file, page = split_page(source)
        data = read_file(file, name)
    else:
        data, page = source, None
    return decode(data, name=name, max_pixels=max_pixels, value_range=value_range, page=page).pixels


def decode(
    data: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    value_range: ValueRange = FILE_RANGE,
    page: int | None = None,
) -> Decoded:
    """Decode the bytes of a file.

    Args:
        data: the file's bytes.
        name: name of the image, for errors.
        max_pixels: limit, checked from the header before decoding.
        value_range: settings of the run for images with more than 8 bits.
        page: page or frame, from 0. None is the first one, with a note if there are several.

    Returns:
        Upright RGB after EXIF orientation, transparency composited on white, and notes.

    Raises:
        ImageError: empty, damaged, not an image, more than ``max_pixels`` pixels, no such page.
    """
    if not data:
        raise ImageError(name, "the file is empty (0 bytes); copy it again from its source")
    _let_pillow_read(max_pixels)
    notes: list[str] = []
    try:
        pixels = _decode(data, name, max_pixels, value_range, page or 0, notes)
        if page is None and (count := count_pages(data)) > 1:
            notes.append(
                f"The file has {count} pages or frames; only the first was read (--pages all reads each)."
            )
        return Decoded(pixels, tuple(notes))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            name,
            "not a JPEG, PNG, TIFF, BMP, WebP or GIF image, or damaged from its first bytes on; "
            "convert it to one of these, or take it out of the folder",
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(name, f"more than {max_pixels:,} pixels, the limit; {SMALLER}") from None
    except MemoryError:
        raise ImageError(name, "not enough memory to decode it; scale it down or cut it into parts") from None
    except Exception as error:  # SyntaxError, struct.error, KeyError … on damaged files
        detail = str(error).strip() or type(error).__name__
        raise ImageError(name, f"damaged or cut short ({detail}); copy or export it again") from error


def count_pages(data: bytes) -> int:
    """Return the number of pages or frames that are separate images; 1 if they cannot be counted.

    The further images of a multi-picture JPEG are previews and depth maps, and do not count.
    """
    if data.startswith(_JPEG_START):  # Pillow would load all of its plugins to find out that it is no PNG
        return 1
    try:
        if is_tiff(data):
            return count_tiff_pages(data)
        if (extra := sniff_extra(data)) is DICOM and extra.installed:
            from clipspect.data.dicom import count_dicom_frames

            return count_dicom_frames(data)
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "GIF")) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # damaged, or another format
        return 1


def _decode(
    data: bytes, name: str, max_pixels: int, value_range: ValueRange, page: int, notes: list[str]
) -> NDArray[np.uint8]:
    formats: tuple[str, ...] = FORMATS
    if is_tiff(data):
        found = decode_tiff(
            data, name, max_pixels=max_pixels, value_range=value_range, page=page, notes=notes
        )
        if found is not None:
            return found
    elif (extra := sniff_extra(data)) is not None:
        need(extra, name)
        if extra is DICOM:
            from clipspect.data.dicom import decode_dicom

            return decode_dicom(
                data, name, max_pixels=max_pixels, value_range=value_range, page=page, notes=notes
            )
        formats = (str(extra.pillow),)
    with Image.open(io.BytesIO(data), formats=formats) as image:
        check_size(image.width, image.height, name, max_pixels)
        if page:
            image.seek(page)
        elif is_deep_png(data):
            return _deep_png(data, image, name, value_range, notes)
        return pil_to_pixels(image, name, max_pixels=max_pixels, value_range=value_range, notes=notes)


def is_deep_png(data: bytes) -> bool:
    """Return whether bytes are a PNG file of 16 bits."""
    return data.startswith(_PNG_START) and data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"


def _deep_png(
    data: bytes, image: Image.Image, name: str, value_range: ValueRange, notes: list[str]
) -> NDArray[np.uint8]:
    """Decode a PNG file of 16 bits."""
    image.load()  # refuses damaged data that the other decoder partly accepts
    values = deep_png_values(data)
    colours = 3 if values.shape[2] >= 3 else 1
    bits = _significant_bits(data, values[:, :, :colours])
    pixels = scale_to_bytes(values[:, :, :colours], name, value_range, bits=bits, notes=notes)
    if colours == 1:
        pixels = grey_to_rgb(pixels[:, :, 0])
    if values.shape[2] > colours:
        opacity = scale_opacity(values[:, :, colours], name, value_range, bits=bits)
        pixels = over_white(np.dstack([pixels, opacity]))
    return np.ascontiguousarray(upright(pixels, orientation_of(image)))


def deep_png_values(data: bytes) -> NDArray[np.uint16]:
    """Return (H, W, bands) of a PNG file of 16 bits; of colors and transparency Pillow keeps 8 bits."""
    from imagecodecs import png_decode

    values = np.asarray(png_decode(data))
    return values[:, :, None] if values.ndim == 2 else values


def _significant_bits(data: bytes, values: NDArray[np.uint16]) -> int | None:
    """Return the depth of the chunk sBIT, if the values are stored unscaled, against the standard.

    Scaled values have zeros in the bits below.
    """
    at = data.find(b"sBIT", 0, data.find(b"IDAT"))
    if at < 0:
        return None
    length = int.from_bytes(data[at - 4 : at], "big")
    bits = usable_depth(values, list(data[at + 4 : at + 4 + length][: values.shape[2]]))
    return bits if bits is not None and (values & ((1 << (16 - bits)) - 1)).any() else None


def _let_pillow_read(max_pixels: int) -> None:
    """Raise Pillow's limit, above which it refuses images, if the limit of clipspect is higher."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def page_path(path: Path, page: int) -> Path:
    """Return the name of one page of a file, counted from 0: ``scan.tif#1``, ``scan.tif#2`` …"""
    return path.with_name(f"{path.name}#{page + 1}")


def split_page(path: Path) -> tuple[Path, int | None]:
    """Split a :func:`page_path` into file and page; the page is None for a path that names no page."""
    named = _PAGE.fullmatch(path.name)
    if named is None or _exists(path):
        return path, None
    return path.with_name(named.group(1)), int(named.group(2)) - 1


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes, for a page also of its number. Raises ImageError if unreadable."""
    file, page = split_page(path)
    try:
        if file.exists() and not file.is_file():  # opening a pipe waits for a writer
            raise ImageError(str(path), "not a regular file; give the path of one image")
        with file.open("rb") as opened:
            return _page_hash(hashlib.file_digest(opened, "sha256"), page)
    except OSError as error:
        raise ImageError(
            str(path), f"cannot be read ({error.strerror or error}); check the path and the disk"
        ) from error


def _page_hash(digest: hashlib._Hash, page: int | None) -> str:
    if page is not None:
        digest.update(f"#{page + 1}".encode())
    return digest.hexdigest()


def read_file(path: Path, name: str) -> bytes:
    """Return a file's bytes. Raises ImageError: missing, not a regular file, too large, no permission."""
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
