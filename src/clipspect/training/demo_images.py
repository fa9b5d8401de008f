"""Images of the demo: one cast metal bracket, imaged repeatedly, sometimes with a defect.

Brackets are a held-out kind: the tiny model never saw one in training.

"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipspect.training.render import Canvas
from clipspect.training.render.fields import slope, smoothstep, soften
from clipspect.training.render.objects import bracket_distance
from clipspect.training.render.photometry import add_noise
from clipspect.training.render.scenes import add_defects, visible_change
from clipspect.training.render.structure import Ground

SIDE = 512
_NOISE = 0.012
_QUALITY = 90
BRACKETS: tuple[tuple[str, int], ...] = (
    ("good", 1),
    ("good", 2),
    ("good", 3),
    ("good", 4),
    ("good", 5),
    ("good", 7),
    ("scratch", 204),
    ("crack", 201),
    ("hole", 208),
    ("pits", 204),
    ("stain", 208),
    ("broken edge", 201),
    ("fibre", 204),
)
"""Defect and seed of each image; the seeds give clearly visible defects."""
KNOWN_GOOD = tuple(range(31, 41))
"""Seeds of the ten known-good brackets."""


def draw_bracket(c: Canvas) -> Ground:
    """Draw one clean bracket on a dark mat, with its own rotation and position."""
    turn, scale = c.uniform(1, -0.2, 0.2), c.uniform(1, 0.72, 0.76)
    x, y = c.x - c.uniform(1, -0.04, 0.04), c.y - c.uniform(1, -0.04, 0.04)
    x, y = (x * turn.cos() + y * turn.sin()) / scale, (y * turn.cos() - x * turn.sin()) / scale
    distance = bracket_distance(x, y, 0.4, 0.1, 0.55)
    part = torch.sigmoid(-distance * scale / c.pixel * 2.2)

    # Cast metal: fine matte grain, and a chamfer that catches the light on one side.
    light = torch.tensor(0.9, device=c.device)
    grain = 0.6 * c.noise(1, 0.25) + 0.4 * c.noise(1, 1.2)
    chamfer = slope(smoothstep(-distance / 0.07), light.view(1, 1, 1))
    metal = 0.6 + 0.018 * grain + (1.4 * chamfer).clamp(-0.22, 0.22)
    body = metal[:, None] * torch.tensor([0.97, 1.0, 1.04], device=c.device).view(1, 3, 1, 1)

    mat = 0.17 + 0.012 * c.noise(1, 0.3)
    shadow = soften(soften(part, 12), 8).roll((14, 10), (1, 2))
    mat = mat * (1 - 0.6 * shadow)
    background = mat[:, None] * torch.tensor([0.9, 1.0, 1.1], device=c.device).view(1, 3, 1, 1)
    picture = body * part[:, None] + background * (1 - part[:, None])
    return Ground(picture.clamp(0, 1), part, background.clamp(0, 1))


def render_image(defect: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return the image (3, S, S) in [0, 1] and its mask (S, S), empty for ``good``."""
    c = Canvas(SIDE, seed)
    ground = draw_bracket(c)
    picture, region = ground.picture, torch.zeros_like(ground.part)
    if defect != "good":
        # The antialiased rim belongs to the part, so a broken-off piece includes its rim.
        whole = Ground(ground.picture, (ground.part > 0.02).float(), ground.background)
        picture, region = add_defects(c, whole, [defect])
    level = torch.full((1, 1, 1), _NOISE, device=c.device)
    mask = visible_change(ground.picture, picture, region, level)
    light = 1 + 0.08 * (c.x * torch.tensor(0.7) - c.y * torch.tensor(0.7)) * c.uniform(1, 0.5, 1.5)
    exposed = (picture * light[:, None] * c.uniform(1, 0.96, 1.04)[:, None]).clamp(0, 1)
    return add_noise(c, exposed, level)[0], mask[0]


def as_pixels(picture: Tensor) -> NDArray[np.uint8]:
    """Convert an image (3, S, S) in [0, 1] to 8-bit pixels (S, S, 3)."""
    return np.ascontiguousarray((picture.permute(1, 2, 0) * 255).round().byte().numpy())


def main() -> None:
    """Write ``photos/*.jpg``, ``masks/*.png`` and ``good/*.jpg``."""
    parser = argparse.ArgumentParser(prog="python -m clipspect.training.demo_images", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for photos/, masks/ and good/")
    out: Path = parser.parse_args().out
    for name in ("photos", "masks", "good"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for number, (defect, seed) in enumerate(BRACKETS, start=1):
        picture, mask = render_image(defect, seed)
        stem = f"{number:02d}_{defect.replace(' ', '_')}"
        _save(picture, out / "photos" / f"{stem}.jpg")
        if defect != "good":
            Image.fromarray((mask * 255).byte().numpy()).save(out / "masks" / f"{stem}.png", optimize=True)
    for number, seed in enumerate(KNOWN_GOOD, start=1):
        _save(render_image("good", seed)[0], out / "good" / f"{number:02d}.jpg")


def _save(picture: Tensor, path: Path) -> None:
    Image.fromarray(as_pixels(picture)).save(path, quality=_QUALITY)


if __name__ == "__main__":
    main()
