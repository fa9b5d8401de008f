"""Rendered sets in which a share of the images carries the same defect, or the same harmless mark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ablation_sets import MASK_SIDE
from clipspect.training.render.fields import Canvas
from clipspect.training.render.large_defects import DEFECTS
from clipspect.training.render.photometry import add_noise
from clipspect.training.render.scenes import add_defects, visible_change
from clipspect.training.render.structure import Ground
from clipspect.training.render.textures import HELD_OUT_TEXTURES, draw_surfaces

Kind = Literal["repeated defect", "no repetition", "harmless mark"]
KINDS: tuple[Kind, ...] = ("repeated defect", "no repetition", "harmless mark")
REPEATED = ("hole", "stain", "burr", "crack")
"""The defect of each product in turn, small to medium."""
_SEED = 60_100  # thresholds of methods/repeated.py were chosen on the sets of 51_040


@dataclass(frozen=True)
class RepeatedSet:
    """Images of one product: good ones, some with different defects, some with the same defect or mark."""

    kind: Kind
    product: int
    object: str
    defect: str
    """What is repeated."""
    pieces: NDArray[np.uint8]
    """(N, S, S, 3)."""
    masks: NDArray[np.bool_]
    """(N, MASK_SIDE, MASK_SIDE) defects; the harmless mark is none."""
    repeated: NDArray[np.bool_]
    """(N,) images with the repeated defect or mark."""


def repeated_sets(
    side: int, products: int, images: int, share: float = 0.3, own: float = 0.1
) -> Iterator[RepeatedSet]:
    """Yield three sets per product over the same surface, light and noise.

    - "repeated defect": ``share`` of the images carry one defect, the same in shape and appearance, at places of their
      own; a further ``own`` carry different defects.
    - "no repetition": the images of the first share are good.
    - "harmless mark": they carry the same change, and it counts as normal, as a variant of the product would.

    Args:
        side: of the images, in pixels.
        products: number of surfaces.
        images: per set.
        share: of the images with what is repeated.
        own: share of the images with different defects.
    """
    textures = list(HELD_OUT_TEXTURES)
    for product in range(products):
        texture, name = textures[product % len(textures)], REPEATED[product % len(REPEATED)]
        across = int(np.ceil(images**0.5))
        surface, nouns = draw_surfaces(
            Canvas(across * side, _SEED + product), 1, {texture: HELD_OUT_TEXTURES[texture]}, plain=0.0
        )
        places = F.unfold(surface, side, stride=side).reshape(3, side, side, -1).permute(3, 0, 1, 2)
        ground = places[:images].contiguous()
        same, single = round(share * images), round(own * images)
        changed, region = _same_defect(ground[:same], name, side, product)
        random = Canvas(side, _SEED + 1000 + product)
        rest = ground[same : same + single]
        names = [name for name, defect in DEFECTS.items() if defect.weight > 0]
        kinds = [names[i] for i in random.integers(single, 0, len(names)).flatten().tolist()]
        others, touched = add_defects(random, _as_ground(rest), kinds)
        level = torch.full((images, 1, 1), 0.01)
        for kind in KINDS:
            picture = ground.clone()
            mask = torch.zeros(images, side, side)
            picture[same : same + single] = others
            mask[same : same + single] = visible_change(rest, others, touched, level[:single])
            if kind != "no repetition":
                picture[:same] = changed
            if kind == "repeated defect":
                mask[:same] = visible_change(ground[:same], changed, region, level[:same])
            taken = add_noise(Canvas(side, _SEED + 2000 + product), picture, level).permute(0, 2, 3, 1)
            small = F.adaptive_max_pool2d(mask, MASK_SIDE) > 0
            repeated = np.arange(images) < same
            pieces = (taken * 255).round().byte().numpy()
            yield RepeatedSet(kind, product, nouns[0], name, pieces, small.numpy(), repeated)


def _same_defect(ground: Tensor, name: str, side: int, product: int) -> tuple[Tensor, Tensor]:
    """Draw one defect on every image, at another place of each: (N, 3, S, S) images and (N, S, S) regions."""
    places = np.random.default_rng(_SEED + product).integers(0, side, (len(ground), 2)).tolist()
    pictures, regions = [], []
    for image, (down, right) in zip(ground, places, strict=True):
        moved = image[None].roll((down, right), (2, 3))
        # The same seed draws the same defect.
        changed, region = DEFECTS[name].draw(Canvas(side, _SEED + 3000 + product), _as_ground(moved))
        pictures.append(changed.clamp(0, 1).roll((-down, -right), (2, 3))[0])
        regions.append(region.roll((-down, -right), (1, 2))[0])
    return torch.stack(pictures), torch.stack(regions)


def _as_ground(pictures: Tensor) -> Ground:
    return Ground(pictures, torch.ones(len(pictures), *pictures.shape[2:]), pictures.roll(1, 0))
