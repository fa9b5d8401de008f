"""Limits on uploads: count, size and file type, detected from the content before decoding."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from clipspect.config import check_bounds, option
from clipspect.errors import UsageError
from clipspect.server.errors import ServiceError

MEGABYTE = 1_000_000
SAFETY = "Safety"
"""Group of the options in ``--help``."""

_STARTS = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"BM", "BMP"),
           (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
           (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"), (b"II+\x00", "TIFF"), (b"MM\x00+", "TIFF"))  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Maximum size and number of images in one request. Raises UsageError for a bound that nothing keeps."""

    body_mb: float = option(64, "Megabytes of one request.", "--max-body-mb", SAFETY, float, above=0)
    image_mb: float = option(24, "Megabytes of one image.", "--max-mb", SAFETY, float, above=0)
    """Size of one file before decoding, in megabytes of 10⁶ bytes."""
    pixels: int = option(50_000_000, "Pixels of one image.", "--max-pixels", SAFETY, int, at_least=1)
    """Width × height of one image, read from its header."""
    images: int = option(16, "Images at once.", "--max-images", SAFETY, int, at_least=1)
    references: int = 16

    def __post_init__(self) -> None:
        """Check the bounds."""
        check_bounds(self)
        if self.references < 1:
            raise UsageError(f"references={self.references!r}: give a whole number of at least 1")

    def check(self, images: Sequence[bytes], what: str = "image") -> None:
        """Raise ServiceError unless every file is an image within the limits. Nothing is decoded.

        413: too many, too large, too many pixels. 415: other file type. 422: no image, or a broken header.
        """
        most = self.references if what == "reference" else self.images
        if len(images) > most:
            raise ServiceError(413, "too_many", f"{len(images)} {what}s; the limit is {most} in one request")
        for number, data in enumerate(images):
            try:
                self._check_one(data, f"{what} {number + 1}")
            except ServiceError as error:
                error.details = [{"field": f"{what}s.{number}", "message": error.message}]
                raise

    def _check_one(self, data: bytes, name: str) -> None:
        if len(data) > self.image_mb * MEGABYTE:
            raise ServiceError(
                413,
                "too_large",
                f"{name} has {len(data) / MEGABYTE:.1f} MB; the limit is {self.image_mb:g} MB",
            )
        from clipspect.data.tiff import tiff_size

        kind = sniff(data)
        if kind is None:
            raise ServiceError(
                415,
                "not_an_image",
                f"{name} is not a JPEG, PNG, TIFF, BMP, WebP or GIF file by its content",
            )
        try:
            if kind == "TIFF":
                width, height = tiff_size(data)
            else:
                with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                    width, height = image.size
        except Image.DecompressionBombError:
            raise ServiceError(
                413, "too_many_pixels", f"{name} has more than the limit of {self.pixels:,} pixels"
            ) from None
        except Exception as error:  # Pillow raises arbitrary exceptions on a broken header
            raise ServiceError(
                422, "damaged", f"{name} starts like a {kind} file, but its header is damaged"
            ) from error
        if width * height > self.pixels:
            raise ServiceError(
                413,
                "too_many_pixels",
                f"{name} is {width:,} × {height:,} pixels; the limit is {self.pixels:,} in all",
            )


def sniff(data: bytes) -> str | None:
    """Return Pillow's name of the image format that the bytes start with; None for anything else."""
    from clipspect.data.decode import FORMATS

    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for start, kind in _STARTS if data.startswith(start) and kind in FORMATS), None)
