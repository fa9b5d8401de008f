"""Photos and maps of a report, encoded for the viewer (docs/results.md)."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.convert import MAX_PIXELS
from clipspect.data.decode import read_image
from clipspect.data.ranges import ValueRange
from clipspect.data.templates import FolderTemplates, match_templates
from clipspect.errors import ImageError, UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.rows import calibration_of, inside_of, layers_of

PREVIEW_SIDE = 256
"""Long side of the previews in rows."""
LARGE_SIDE = 1024
THUMBNAIL_SIDE = 160
LARGE_QUALITY, THUMBNAIL_QUALITY = 82, 70


class PictureReader:
    """Pictures of a run's images, from the rows and, where they are still there, from the image files."""

    def __init__(
        self,
        manifest: Mapping[str, Any],
        calibrations: Mapping[str, Calibration],
        *,
        full: set[str],
        large: set[str],
    ) -> None:
        """Set what is embedded.

        Args:
            manifest: of the results folder; it names the images' folder and how images are read.
            calibrations: by method.
            full: paths with the stored preview and a 16-bit map; the others are smaller.
            large: paths with a larger photo and their template.
        """
        settings = manifest["settings"]
        source = settings.get("source")
        self._root = Path(source) if isinstance(source, str) else None
        if self._root is not None and self._root.is_file():
            self._root = self._root.parent
        window = settings.get("window")
        self._reading: dict[str, Any] = {
            "max_pixels": int(settings.get("max_pixels") or MAX_PIXELS),
            "value_range": ValueRange(
                settings.get("bit_depth"), None if window is None else (window[0], window[1])
            ),
        }
        self._templates = self._find_templates(manifest.get("templates"))
        self._calibrations, self._full, self._large = calibrations, full, large

    def pictures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the pictures of one image from its rows, one row per method."""
        first = rows[0]
        path, preview = first["path"], first["preview"]
        is_full, is_large = path in self._full, path in self._large
        if preview is not None and not is_full:
            preview = _shrink(preview)
        large = reference = None
        if is_large and self._root is not None:
            file = self._root / path
            pixels = self._read(file, first["content_hash"])
            # an image that fits into its preview gains nothing
            large = None if pixels is None or max(pixels.shape[:2]) <= PREVIEW_SIDE else _jpeg(pixels)
            reference = self._reference(file)
        return {
            "photo": preview and _base64(preview),
            "large": large and _base64(large),
            "references": [] if reference is None else [_base64(reference)],
            "maps": [
                encode_map(row, calibration_of(self._calibrations, row), 2 if is_full else 1) for row in rows
            ],
        }

    def _find_templates(self, folder: str | None) -> FolderTemplates | None:
        if folder is None or self._root is None or not Path(folder).is_dir():
            return None
        try:
            return match_templates(Path(folder), self._root)
        except UsageError:  # the folder has changed since the run
            return None

    def _read(self, file: Path, content_hash: str | None) -> NDArray[np.uint8] | None:
        """Return an image's pixels; None if the file is gone or has changed."""
        try:
            pixels, digest = read_image(file, **self._reading)
        except ImageError:
            return None
        return pixels if content_hash in (None, digest) else None

    def _reference(self, file: Path) -> bytes | None:
        if self._templates is None:
            return None
        try:
            pixels = self._read(self._templates(file), None)
        except ImageError:
            return None
        return None if pixels is None else _jpeg(pixels)


def encode_map(row: Mapping[str, Any], calibration: Calibration, width: int) -> dict[str, Any] | None:
    """Return a row's map for the viewer, ``width`` bytes per cell; None if the image failed.

    Values are on the scale where 0 is the level of good images and 1 is score 0.5, and 0 below that.
    """
    layers = layers_of(row)
    if layers is None:
        return None
    values = (calibration.map(layers, row["class_logit"]) - calibration.base) / calibration.width
    values = np.where(np.isfinite(values), np.maximum(values, 0), 0)  # 0 outside of the region of interest
    inside = inside_of(row)
    top = max(float(values.max()), 1e-9)
    largest = 255 if width == 1 else 65535
    numbers = np.rint(values * (largest / top)).astype("u1" if width == 1 else "<u2")
    return {
        "width": values.shape[1],
        "height": values.shape[0],
        "top": top,
        "bytes": width,
        "data": _base64(zlib.compress(numbers.tobytes(), 9)),
        "inside": None if inside is None else _base64(zlib.compress(inside.tobytes(), 9)),
    }


def _shrink(preview: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(preview)) as image:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((LARGE_SIDE, LARGE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=LARGE_QUALITY)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
