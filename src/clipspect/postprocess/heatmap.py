"""Heatmaps: an image blended with the colors of its anomaly map, with its regions outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipspect.postprocess.maps import resize_map
from clipspect.types import Region

if TYPE_CHECKING:
    from PIL import Image

HEAT_COLORS = np.array(
    [
        (30, 70, 190), (38, 96, 214), (46, 110, 232), (84, 92, 236), (140, 70, 226), (206, 34, 128),
        (226, 40, 84), (236, 62, 44), (244, 98, 24), (250, 138, 10), (255, 176, 0),
    ]
)  # fmt: skip
"""(11, 3) evenly spaced colors of middle lightness, which show on dark and on white images; the viewer has the same."""
COOL, WARM = 0.25, 0.5
"""Scores at which the heatmap starts to show and reaches full opacity: 0.5 is the threshold."""
DIMMED = 0.4
"""Share of the brightness that is left outside the region of interest."""
HEAT_SIDE = 1024
"""Long side at which heatmaps are colored; smooth maps lose nothing, and large images need no floats."""


def color_heat(values: NDArray[np.float32], opacity: float) -> NDArray[np.uint8]:
    """Return (H, W, 4) RGBA of scores (H, W): transparent below 0.25, full ``opacity`` from the threshold 0.5."""
    levels = np.arange(256) / 255
    stops = np.linspace(0, 1, len(HEAT_COLORS))
    colours = [np.interp(levels, stops, HEAT_COLORS[:, channel]) for channel in range(3)]
    alpha = 255 * opacity * np.clip((levels - COOL) / (WARM - COOL), 0, 1)
    table = np.stack([*colours, alpha], axis=-1).round().astype(np.uint8)
    return np.asarray(table[(np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)])


def draw_overlay(
    pixels: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    regions: Sequence[Region],
    *,
    opacity: float = 0.5,
    max_side: int | None = None,
    inside: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Draw the map (h, w) as a heatmap on an image (H, W, 3), with boxes around regions and their peaks; RGB.

    The map contains calibrated scores. The result has the image's size, or at most ``max_side`` on its long side.
    What is not ``inside`` (h, w) the region of interest is dimmed.
    """
    from PIL import Image

    photo = Image.fromarray(pixels)
    factor = min(1.0, (max_side or max(photo.size)) / max(photo.size))
    if factor < 1:
        photo = photo.resize(_scaled(photo.size, factor), Image.Resampling.BOX)
    if inside is not None:
        outside = Image.fromarray(~inside).resize(photo.size, Image.Resampling.NEAREST)
        photo.paste(photo.point(lambda value: int(DIMMED * value)), mask=outside)
    heat_factor = min(1.0, HEAT_SIDE / max(photo.size))
    heat_width, heat_height = _scaled(photo.size, heat_factor)
    values = resize_map(score_map, heat_height, heat_width, inside)
    heat = Image.fromarray(color_heat(values, opacity))
    if heat.size != photo.size:
        heat = heat.resize(photo.size, Image.Resampling.BILINEAR)
    photo.paste(heat, mask=heat.getchannel("A"))
    _draw_regions(photo, regions, factor)
    return photo


def encode_preview(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a small image (H, W, 3) as JPEG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _draw_regions(photo: Image.Image, regions: Sequence[Region], factor: float) -> None:
    """Draw white boxes with a dark outline, visible on light and dark material, in color and in print."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(photo)
    line = max(1, round(max(photo.size) / 400))
    font = ImageFont.load_default(size=max(10, round(max(photo.size) / 45)))
    labelled = min(photo.size) >= 120  # on smaller images the numbers would cover the regions
    for region in reversed(regions):  # highest peak last, so that its label is on top
        box = [region.left, region.top, region.left + region.width, region.top + region.height]
        left, top, right, bottom = (round(edge * factor) for edge in box)
        right, bottom = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle(
            (left - line, top - line, right + line, bottom + line), outline=(15, 15, 20), width=3 * line
        )
        draw.rectangle((left, top, right, bottom), outline=(255, 255, 255), width=line)
        if not labelled:
            continue
        text = f"{region.peak:.2f}"
        text_left, text_top, text_right, text_bottom = draw.textbbox((0, 0), text, font=font)
        pad = 2 * line
        tall, wide = text_bottom - text_top + 2 * pad, text_right - text_left + 2 * pad
        x = min(max(0, left - line), photo.width - wide)
        y = top - line - tall if top - line - tall >= 0 else min(bottom + line, photo.height - tall)
        draw.rectangle((x, y, x + wide, y + tall), fill=(15, 15, 20))
        draw.text((x + pad - text_left, y + pad - text_top), text, font=font, fill=(255, 255, 255))
