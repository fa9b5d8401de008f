"""Images for the ablations: samples of real images and rendered products, each as one unlabeled set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from clipspect.data.prepare import ImageLoader
from clipspect.training.render.fields import Canvas
from clipspect.training.render.large_defects import DEFECTS
from clipspect.training.render.photometry import add_noise, develop
from clipspect.training.render.scenes import add_defects, visible_change
from clipspect.training.render.structure import Ground
from clipspect.training.render.textures import HELD_OUT_TEXTURES, draw_surfaces

MASK_SIDE = 128
"""Side at which maps and masks are compared, small enough to measure a hundred variants."""
_RENDERED_SEED = 20_240


@dataclass(frozen=True)
class PictureSet:
    """Images of one product, good and defective, as in an inspection."""

    data: str
    """Its data set; metrics are means over the sets of a data set."""
    object: str
    pieces: NDArray[np.uint8]
    """(N, S, S, 3)."""
    masks: NDArray[np.bool_]
    """(N, MASK_SIDE, MASK_SIDE); all false for good images."""
    templates: NDArray[np.uint8] | None = None
    """(N, S, S, 3) one reference per image, if the data set has them."""


def magnetic_tile(folder: Path, reader: ImageLoader, defective: int = 5, good: int = 10) -> PictureSet:
    """Return the first few images of each kind of defect, and some good ones."""
    paths, masks = [], []
    for kind in sorted(p for p in (folder / "test").iterdir() if p.is_dir()):
        for path in sorted(kind.iterdir())[: good if kind.name == "good" else defective]:
            paths.append(path)
            masks.append(folder / "ground_truth" / kind.name / f"{path.stem}_mask.png")
    return PictureSet("magnetic tile", "magnetic tile", _pieces(reader, paths), _masks(masks))


def deep_pcb(folder: Path, reader: ImageLoader, pairs: int = 10) -> Iterator[PictureSet]:
    """Yield boards with defects and their templates as one set, and the same boards each with its own template."""
    paths = sorted((folder / "test" / "defect").iterdir())[:pairs]
    templates = _pieces(reader, [folder / "reference" / path.name for path in paths])
    boards = _pieces(reader, paths)
    masks = _masks([folder / "ground_truth" / "defect" / f"{path.stem}_mask.png" for path in paths])
    mixed = np.concatenate([boards, templates])
    yield PictureSet("PCB, mixed", "printed circuit board", mixed, np.concatenate([masks, masks & False]))
    yield PictureSet("PCB, own template", "printed circuit board", boards, masks, templates)


def rendered(side: int, products: int = 4, pictures: int = 12) -> Iterator[PictureSet]:
    """Yield surfaces of kinds the model never saw, with varying position, light and noise; half are defective."""
    kinds = list(HELD_OUT_TEXTURES)
    for number in range(products):
        kind = kinds[number % len(kinds)]
        large = Canvas(max(4, math.ceil(math.sqrt(pictures))) * side, _RENDERED_SEED + number)
        surface, nouns = draw_surfaces(large, 1, {kind: HELD_OUT_TEXTURES[kind]}, plain=0.0)
        places = (
            F.unfold(surface, side, stride=side).reshape(3, side, side, -1).permute(3, 0, 1, 2)[:pictures]
        )
        c = Canvas(side, _RENDERED_SEED + 1000 + number)
        ground = Ground(places.contiguous(), torch.ones(len(places), side, side), places.roll(1, 0))
        names, weights = list(DEFECTS), [defect.weight for defect in DEFECTS.values()]
        defects = [names[i] for i in c.weighted(len(places), weights).tolist()]
        picture, region = add_defects(c, ground, defects)
        clean, defective, level = develop(c, ground.picture, picture)
        mask = visible_change(clean, defective, region, level)
        mask[::2] = 0
        taken = torch.where(mask.any(2).any(1)[:, None, None, None], defective, clean)
        taken = add_noise(c, taken, level).permute(0, 2, 3, 1)
        small = F.adaptive_max_pool2d(mask, MASK_SIDE) > 0
        yield PictureSet("rendered", nouns[0], (taken * 255).round().byte().numpy(), small.numpy())


def _pieces(reader: ImageLoader, paths: list[Path]) -> NDArray[np.uint8]:
    return np.concatenate([reader.read(path).pieces for path in paths])


def _masks(paths: list[Path]) -> NDArray[np.bool_]:
    masks = np.zeros((len(paths), MASK_SIDE, MASK_SIDE), dtype=bool)
    for row, path in enumerate(paths):
        if path.is_file():
            with Image.open(path) as stored:
                mask = torch.from_numpy(np.asarray(stored.convert("L")) > 127)
            masks[row] = F.adaptive_max_pool2d(mask[None].float(), MASK_SIDE)[0].numpy() > 0
    return masks
