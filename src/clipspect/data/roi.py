"""Regions of interest: which part of an image is inspected. Outside it the map is empty and nothing is flagged."""

from __future__ import annotations

import base64
import hashlib
import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipspect.data.convert import MAX_PIXELS, check_size, upright
from clipspect.data.find import find_images
from clipspect.data.tiff import is_tiff, read_tiff_bands
from clipspect.errors import ClipspectError, ImageError, UsageError
from clipspect.postprocess.maps import cells_inside

Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) as fractions of an image's width and height."""

KEPT_SIDE = 1024
"""Most cells per side of a region that is kept beside an image."""
SHAPE_TOLERANCE = 0.01
"""Relative difference between the aspect ratios of a mask and of an image that it is scaled to."""
CACHED_MASKS = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class RegionOfInterest:
    """What is inspected of every image: inside the mask and the polygons, and away from the border."""

    mask: bytes | None = None
    """An image file: white is inspected, black is not. Scaled to images of the same aspect ratio."""
    folder: Path | None = None
    """Folder with a mask per image, found by the image's path below the folder that is scored, or by its name."""
    inspect: tuple[Polygon, ...] = ()
    """What is inside one of these polygons is inspected; without any, all of the image."""
    ignore: tuple[Polygon, ...] = ()
    """What is inside one of these polygons is not inspected."""
    border: str = ""
    """Width of the border that is not inspected: "20" pixels, or "5%" of width and height on each side."""

    def __post_init__(self) -> None:
        """Raise UsageError for a mask, a polygon or a border that cannot be used."""
        if self.border:
            _border_width(self.border, 100)
        if self.mask is not None:
            _mask_pixels(self.mask)
        for polygon in (*self.inspect, *self.ignore):
            _check_polygon(polygon)

    @property
    def is_everything(self) -> bool:
        """Whether all of every image is inspected."""
        return self == RegionOfInterest()

    @cached_property
    def digest(self) -> str:
        """Hash of all of it; of a folder with the names and contents of its masks."""
        masks = [] if self.mask is None else [("", self.mask)]
        if self.folder is not None:
            masks += [(name, path.read_bytes()) for name, path in sorted(self._by_path.items())]
        digest = hashlib.sha256(repr((self.inspect, self.ignore, self.border)).encode())
        for name, data in masks:
            digest.update(f"{name}{hashlib.sha256(data).hexdigest()}".encode())
        return digest.hexdigest()[:16]

    def of_image(self, name: str, height: int, width: int) -> NDArray[np.bool_]:
        """Return which pixels of an image are inspected.

        Args:
            name: of the image: its path below the folder that is scored.
            height: of the image in pixels.
            width: of the image in pixels.

        Returns:
            (h, w), at most 1024 cells a side; a cell belongs to the region if all of its pixels do.

        Raises:
            ImageError: its mask has another shape, there is none in the folder, or nothing is left of the image.
        """
        if self.mask is not None:
            _check_shape(_mask_pixels(self.mask), height, width, name)
        cells = _common_part(self, height, width)
        if self.folder is not None:
            cells = cells & _reduced(_fit(self._mask_of(name), height, width, name))
        if not cells.any():
            raise ImageError(name, "the region of interest leaves nothing of this image to inspect")
        return cells

    def fixed_cells(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return which cells (height, width) of a map over a whole image are inspected, whatever the image's size.

        Raises:
            UsageError: the region is not the same part of every image, or it is thinner than a cell.
        """
        if self.folder is not None:
            raise UsageError("one mask per image cannot be part of one file; give one mask or polygons")
        if self.border and not self.border.endswith("%"):
            raise UsageError(
                f"a border of {self.border} pixels is another part of images of another size; give it in percent,"
                " such as 5%"
            )
        side = (KEPT_SIDE, KEPT_SIDE)
        inside = cells_inside(
            _common_part(self, *(side if self.mask is None else _mask_pixels(self.mask).shape)), height, width
        )
        if not inside.any():
            raise UsageError(
                f"the region of interest is thinner than a cell of a map of {height}×{width} cells"
            )
        return inside

    def to_dict(self) -> dict[str, Any]:
        """Return a region without a folder as JSON-serializable values, the mask's file in base64."""
        assert self.folder is None
        mask = None if self.mask is None else base64.b64encode(self.mask).decode()
        return {"mask": mask, "inspect": self.inspect, "ignore": self.ignore, "border": self.border}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RegionOfInterest:
        """Return the region of :meth:`to_dict`."""
        mask = None if values["mask"] is None else base64.b64decode(values["mask"])
        inspect, ignore = (
            tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in values[name])
            for name in ("inspect", "ignore")
        )
        return RegionOfInterest(mask, None, inspect, ignore, values["border"])

    @cached_property
    def _by_path(self) -> Mapping[str, Path]:
        """Path below the folder, without suffix → mask."""
        assert self.folder is not None
        return {
            path.relative_to(self.folder).with_suffix("").as_posix(): path
            for path in find_images(self.folder)
        }

    def _mask_of(self, name: str) -> NDArray[np.bool_]:
        below = PurePath(name.partition("#")[0]).with_suffix("")
        named = [path for key, path in self._by_path.items() if PurePath(key).name == below.name]
        found = self._by_path.get(below.as_posix()) or (named[0] if len(named) == 1 else None)
        if found is None:
            several = f"{len(named)} masks are" if named else "no mask is"
            raise ImageError(name, f"{several} named {below.name!r} in {self.folder}, and none is at {below}")
        try:
            return _mask_pixels(found.read_bytes())
        except UsageError as error:
            raise ImageError(name, f"{found}: {error}") from None
        except OSError as error:
            raise ImageError(name, f"{found}: cannot be read ({error.strerror})") from None


@lru_cache(CACHED_MASKS)
def _common_part(roi: RegionOfInterest, height: int, width: int) -> NDArray[np.bool_]:
    """What does not depend on the image's name."""
    inside = np.ones((height, width), np.bool_)
    if roi.mask is not None:
        inside &= _fit(_mask_pixels(roi.mask), height, width, "")
    if roi.inspect:
        inside &= _fill(roi.inspect, height, width)
    if roi.ignore:
        inside &= ~_fill(roi.ignore, height, width)
    if roi.border:
        rows, columns = _border_width(roi.border, height), _border_width(roi.border, width)
        inside[:rows] = inside[max(height - rows, 0) :] = False
        inside[:, :columns] = inside[:, max(width - columns, 0) :] = False
    return _reduced(inside)


def _reduced(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    height, width = inside.shape
    return cells_inside(inside, min(height, KEPT_SIDE), min(width, KEPT_SIDE))


def load_roi(source: Path | RegionOfInterest | None, border: str = "") -> RegionOfInterest | None:
    """Return the region of interest of a mask file, a folder of masks or a TOML file of polygons, and a border.

    Args:
        source: a mask; a folder with a mask per image; a TOML file with ``inspect`` or ``ignore``, lists of polygons of
            (x, y) as fractions of width and height; a region that is returned with the border added.
        border: "20" pixels or "5%" of each side that are not inspected.

    Raises:
        UsageError: a file that is missing, no mask, all black, or whose transparency is ambiguous.
    """
    if isinstance(source, RegionOfInterest):
        made = source
    elif source is None:
        made = RegionOfInterest()
    elif source.is_dir():
        find_images(source)  # none: UsageError
        made = RegionOfInterest(folder=source)
    else:
        try:
            data = source.read_bytes()
            made = _read_polygons(data) if source.suffix == ".toml" else RegionOfInterest(mask=data)
        except (OSError, ClipspectError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"--roi {source}: {reason}") from None
    if border:
        made = RegionOfInterest(made.mask, made.folder, made.inspect, made.ignore, border)
    return None if made.is_everything else made


def parse_border(value: Any) -> str:
    """Return a border as text. Raises UsageError unless it is a number of pixels or a percentage below 50."""
    text = str(value).strip()
    _border_width(text, 100)
    return text


def _border_width(border: str, side: int) -> int:
    """Pixels of a border on a side of an image."""
    number, percent = border.removesuffix("%").strip(), border.endswith("%")
    try:
        amount = float(number)
    except ValueError:
        amount = -1
    if not (0 <= amount < (50 if percent else float("inf"))) or not (percent or amount.is_integer()):
        raise UsageError(f"border {border!r}: give pixels, such as 20, or a share below half, such as 5%")
    return round(amount / 100 * side) if percent else int(amount)


@lru_cache(CACHED_MASKS)
def _mask_pixels(data: bytes) -> NDArray[np.bool_]:
    """(H, W) of a mask file: white or opaque is inside. Raises UsageError."""
    try:
        grey, alpha = _grey_and_alpha(data)
    except ImageError as error:
        raise UsageError(str(error)) from None
    except Exception:
        raise UsageError(
            "is not an image that can be read; give a mask as PNG, white where to look"
        ) from None
    if alpha is not None:
        visible = grey[alpha > 0]
        if np.ptp(alpha) and visible.size and np.ptp(visible):
            raise UsageError(
                "has both transparency and colors, so that it is not clear which is the mask; save it without alpha"
            )
        grey = alpha.astype(np.float64) if np.ptp(alpha) else grey
    if not grey.max() > 0:
        raise UsageError("is all black: nothing would be inspected; paint white where to look")
    return np.asarray(grey >= grey.max() / 2)


def _grey_and_alpha(data: bytes) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """Return (H, W) brightness and transparency of an upright mask; every depth and layout of TIFF is read."""
    if is_tiff(data) and (bands := read_tiff_bands(data)) is not None:
        colours = (bands.colours if bands.palette is None else bands.palette).astype(np.float64)
        grey = colours[:, :, :3] @ _LUMINANCE if colours.shape[2] >= 3 else colours[:, :, 0]
        alpha = None if bands.alpha is None else upright(bands.alpha, bands.orientation)
        return upright(grey, bands.orientation), alpha
    with Image.open(io.BytesIO(data)) as opened:
        check_size(*opened.size, "mask", MAX_PIXELS)
        image = ImageOps.exif_transpose(opened)
    transparent = image.has_transparency_data
    return _grey(image), np.asarray(image.convert("RGBA").getchannel("A")) if transparent else None


def _grey(image: Image.Image) -> NDArray[np.float64]:
    is_deep = image.mode.startswith(("I", "F")) or image.mode == "1"
    return np.asarray(image if is_deep else image.convert("RGB").convert("L"), np.float64)


def _fit(mask: NDArray[np.bool_], height: int, width: int, name: str) -> NDArray[np.bool_]:
    """A mask at the size of an image with the same aspect ratio."""
    _check_shape(mask, height, width, name)
    if mask.shape == (height, width):
        return mask
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized, np.bool_)


def _check_shape(mask: NDArray[np.bool_], height: int, width: int, name: str) -> None:
    """Raise ImageError unless the mask has the size of the image, or its aspect ratio to the pixel."""
    tall, wide = mask.shape
    if abs(wide * height - tall * width) > SHAPE_TOLERANCE * wide * height and mask.shape != (height, width):
        raise ImageError(
            name,
            f"the mask of the region of interest is {wide}×{tall} pixels and the image {width}×{height}; give a mask"
            " of the image's shape",
        )


def _fill(polygons: tuple[Polygon, ...], height: int, width: int) -> NDArray[np.bool_]:
    from PIL import ImageDraw

    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon([(x * width - 0.5, y * height - 0.5) for x, y in polygon], fill=1)
    return np.array(canvas, np.bool_)


def _read_polygons(data: bytes) -> RegionOfInterest:
    try:
        values = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"is not TOML ({error})") from None
    return roi_of_polygons(values)


def roi_of_polygons(values: Mapping[str, Any]) -> RegionOfInterest:
    """Return the region of ``inspect`` and ``ignore`` polygons of a TOML table. Raises UsageError."""
    if unknown := set(values) - {"inspect", "ignore"}:
        raise UsageError(f"unknown entry {sorted(unknown)[0]!r}; there are: inspect, ignore")
    try:
        read = {
            key: tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in polygons)
            for key, polygons in values.items()
        }
    except (TypeError, ValueError):
        raise UsageError(
            "write polygons as lists of corners: inspect = [[[0.1, 0.1], [0.9, 0.1], …]]"
        ) from None
    if not any(read.values()):
        raise UsageError("holds no polygon; write inspect = [[[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]]")
    return RegionOfInterest(inspect=read.get("inspect", ()), ignore=read.get("ignore", ()))


def _check_polygon(polygon: Polygon) -> None:
    if len(polygon) < 3 or not all(0 <= value <= 1 for corner in polygon for value in corner):
        raise UsageError(
            f"polygon {polygon}: give three or more corners (x, y) as fractions of width and height, from 0 to 1"
        )
