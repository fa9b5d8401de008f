"""Decoding of TIFF files to 8-bit RGB by tifffile and imagecodecs: every depth, photometric and planar layout."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.data.convert import check_size, over_white, upright
from clipspect.data.ranges import ValueRange, scale_opacity, scale_to_bytes, usable_depth
from clipspect.errors import ImageError

if TYPE_CHECKING:
    import tifffile

STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""First bytes of TIFF and BigTIFF, little- and big-endian."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_ASSOCIATED, _UNASSOCIATED = 1, 2
_REDUCED_OR_MASK = 1 | 4
_OLD_JPEG, _JPEG = 6, 7
_LOSSY = (_JPEG, 34892, 50001)
"""Compressions JPEG, lossy JPEG of DNG, and WebP."""
_ORIENTATION = 274
_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 281, 341
_OME_BITS = re.compile(r'SignificantBits="(\d+)"')
_PAGES_LOOKED_AT = 256
"""Maximum number of pages checked for thumbnails and masks; reading the headers of longer files takes seconds."""
_BYTES_PER_PIXEL = 64
"""Maximum bytes of one pixel: more bands indicate a damaged header."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # clipspect's own errors report damaged files


def is_tiff(data: bytes) -> bool:
    """Return whether bytes start like a TIFF file."""
    return data[:4] in STARTS


def decode_tiff(
    data: bytes, name: str, *, max_pixels: int, value_range: ValueRange, page: int, notes: list[str]
) -> NDArray[np.uint8] | None:
    """Decode one page of a TIFF file.

    Args:
        data: the file's bytes.
        name: name of the image, for errors.
        max_pixels: limit, checked before decoding.
        value_range: settings of the run.
        page: index of the page; thumbnails and masks are not counted.
        notes: receives notes for the user, such as on ignored bands.

    Returns:
        (H, W, 3) uint8 RGB, upright; None for color spaces that Pillow reads (Lab, subsampled YCbCr).

    Raises:
        ImageError: the data decode but cannot be used. Errors of tifffile pass through.
    """
    with _open(data) as file:
        pages = _image_pages(file)
        if page >= len(pages):
            raise ImageError(name, f"has {len(pages)} pages, and page {page + 1} was asked for")
        chosen = pages[page].aspage()
        check_size(chosen.imagewidth, chosen.imagelength, name, max_pixels)
        if chosen.nbytes > _BYTES_PER_PIXEL * max(chosen.imagewidth * chosen.imagelength, 1024):
            raise ImageError(
                name, f"{chosen.samplesperpixel} bands of {chosen.bitspersample} bits; export fewer"
            )
        if not _is_readable(chosen):
            return None
        _check_complete(pages[page], len(data), name)
        values = pages[page].asarray(maxworkers=1)  # images are already decoded in parallel
        bands = _bands_last(values, chosen, notes)
        bits = usable_depth(bands, _declared_depths(file, chosen)) or _stored_bits(chosen)
        pixels = _to_rgb(bands, chosen, bits, name, value_range, notes)
        tag = chosen.tags.get(_ORIENTATION)
        return np.ascontiguousarray(upright(pixels, int(tag.value) if tag is not None else 1))


@dataclass(frozen=True)
class TiffBands:
    """Stored values of the first page, black as 0."""

    colours: NDArray[Any]
    """(H, W, bands)."""
    alpha: NDArray[Any] | None
    """(H, W) alpha, if transparency is declared."""
    orientation: int
    palette: NDArray[np.uint8] | None = None
    """(H, W, 3) colors of a palette; ``colours`` are its indices."""
    lossy: bool = False
    """Whether the compression changes values."""


def read_tiff_bands(data: bytes) -> TiffBands | None:
    """Read values without scaling them; None for color spaces other than gray, RGB and palette.

    Raises:
        ImageError: data are missing. Errors of tifffile pass through.
    """
    with _open(data) as file:
        first = _image_pages(file)[0]
        page = first.aspage()
        check_size(page.imagewidth, page.imagelength, "mask")
        if not _is_readable(page) or page.photometric in (_SEPARATED, _YCBCR):
            return None
        _check_complete(first, len(data), "mask")
        bands = _bands_last(first.asarray(maxworkers=1), page, [])
        tag = page.tags.get(_ORIENTATION)
        orientation = int(tag.value) if tag is not None else 1
    if page.photometric == _PALETTE:
        return TiffBands(bands, None, orientation, _look_up(bands[:, :, 0], page.colormap, "mask"))
    extra = tuple(page.extrasamples or ())
    transparent = bool(extra) and extra[0] in (_ASSOCIATED, _UNASSOCIATED)
    count = bands.shape[2] - (len(extra) if transparent else 0)
    colours = bands[:, :, :count]
    if page.photometric == _WHITE_IS_ZERO:
        white = 2 ** int(page.bitspersample) - 1 if colours.dtype.kind in "iu" else 1
        colours = ~colours if colours.dtype.kind == "b" else white - colours
    alpha = bands[:, :, count] if transparent else None
    return TiffBands(colours, alpha, orientation, lossy=page.compression in _LOSSY)


def count_tiff_pages(data: bytes) -> int:
    """Return the number of pages that are separate images. Errors of tifffile pass through."""
    with _open(data) as file:
        return len(_image_pages(file))


def tiff_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the first page, from its header. Errors of tifffile pass through."""
    with _open(data) as file:
        page = _image_pages(file)[0].aspage()
        return int(page.imagewidth), int(page.imagelength)


def _open(data: bytes) -> tifffile.TiffFile:
    """Open a file's bytes. tifffile is loaded only for TIFF files: its import takes longer than decoding a JPEG."""
    import tifffile

    return tifffile.TiffFile(io.BytesIO(data))


def _image_pages(file: tifffile.TiffFile) -> Sequence[Any]:
    """Return pages without thumbnails and masks. ImageJ writes a stack of images as one page."""
    if file.is_imagej or (file.is_shaped and len(file.pages) == 1):
        return list(file.series[0].pages)
    if len(file.pages) > _PAGES_LOOKED_AT:
        return file.pages
    pages = list(file.pages)
    return [page for page in pages if not page.aspage().subfiletype & _REDUCED_OR_MASK] or pages[:1]


def _is_readable(page: Any) -> bool:
    """Return whether clipspect can interpret tifffile's values of a page."""
    if page.photometric == _YCBCR:
        return bool(page.compression == _JPEG) or tuple(page.subsampling or (1, 1)) == (1, 1)
    return page.compression != _OLD_JPEG and page.photometric in (
        _WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED,
    )  # fmt: skip


def _check_complete(page: Any, size: int, name: str) -> None:
    """Raise ImageError for a truncated file: tifffile fills missing data with zeros."""
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if not places or any(offset <= 0 or count <= 0 or offset + count > size for offset, count in places):
        raise ImageError(name, "damaged or cut short (data are missing); copy or export it again")


def _bands_last(values: NDArray[Any], page: Any, notes: list[str]) -> NDArray[Any]:
    """Return (H, W, bands); the first slice of a volume."""
    axes = str(page.axes)
    for axis in [one for one in axes if one not in "SYX"]:
        place = axes.index(axis)
        if values.shape[place] > 1:
            notes.append(
                f"The page is a volume of {values.shape[place]} slices; only the first one was read."
            )
        values, axes = values.take(0, axis=place), axes.replace(axis, "")
    if "S" not in axes:
        return values[:, :, None]
    return np.moveaxis(values, axes.index("S"), -1)


def _stored_bits(page: Any) -> int:
    bits = page.bitspersample
    return int(min(bits)) if isinstance(bits, tuple) else int(bits)


def _declared_depths(file: tifffile.TiffFile, page: Any) -> list[int]:
    """Return the depths that metadata declare for values in a larger type: OME, or 2ⁿ − 1 as highest value.

    Another highest value is a statistic of the image and no range.
    """
    depths = [int(bits) for bits in _OME_BITS.findall(file.ome_metadata or "")] if file.is_ome else []
    for code in (_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE):
        if (tag := page.tags.get(code)) is not None:
            highest = max(tag.value) if isinstance(tag.value, tuple) else tag.value
            if isinstance(highest, int) and highest > 0 and highest & (highest + 1) == 0:
                depths.append(highest.bit_length())
    return depths


def _to_rgb(
    bands: NDArray[Any], page: Any, bits: int, name: str, value_range: ValueRange, notes: list[str]
) -> NDArray[np.uint8]:
    if page.photometric == _PALETTE:
        return _look_up(bands[:, :, 0], page.colormap, name)
    colours = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _SEPARATED: 4}.get(page.photometric, 3)
    count = bands.shape[2]
    extra = tuple(page.extrasamples or ())
    alpha = count - len(extra) if extra and extra[0] in (_ASSOCIATED, _UNASSOCIATED) else None
    if colours == 1 and count >= 3 and alpha not in (1, 2):
        colours = 3
    if count < colours:
        raise ImageError(name, f"has {count} bands, and its colours need {colours}; export it as RGB")
    used = {*range(colours), *([] if alpha is None else [alpha])}
    if left_out := [str(band + 1) for band in range(count) if band not in used]:
        several = len(left_out) > 1
        notes.append(
            f"The image has {count} bands; band{'s' * several} {', '.join(left_out)} {'were' if several else 'was'}"
            " not read."
        )
    pixels = scale_to_bytes(bands[:, :, :colours], name, value_range, bits=bits, notes=notes)
    if page.photometric == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    if page.photometric == _SEPARATED:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "CMYK").convert("RGB"))
    elif page.photometric == _YCBCR and page.compression != _JPEG:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "YCbCr").convert("RGB"))
    if pixels.shape[2] == 1:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if alpha is None:
        return np.ascontiguousarray(pixels)
    opacity = scale_opacity(bands[:, :, alpha], name, value_range, bits=bits)
    return over_white(np.dstack([pixels, opacity]), premultiplied=extra[0] == _ASSOCIATED)


def _look_up(indices: NDArray[Any], colormap: Any, name: str) -> NDArray[np.uint8]:
    if colormap is None or indices.dtype.kind not in "biu" or int(indices.max()) >= colormap.shape[1]:
        raise ImageError(name, "its palette is missing or too short; export it as RGB")
    # programs store 8-bit colors in the format's 16-bit fields as they are, times 256 or times 257
    eight = colormap if int(colormap.max()) < 256 else colormap >> 8
    return np.ascontiguousarray(eight.T.astype(np.uint8)[indices.astype(np.intp)])
