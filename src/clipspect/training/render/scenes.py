"""Scenes: a clean image, the same with defects, and the mask of visible changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clipspect.errors import UsageError
from clipspect.training.render.fields import Canvas, grow, soften
from clipspect.training.render.large_defects import DEFECTS, LARGE, Defect
from clipspect.training.render.materials import lay_materials
from clipspect.training.render.objects import (
    HELD_OUT_SHAPES,
    TRAINING_SHAPES,
    Shape,
    draw_parts,
    draw_pose,
)
from clipspect.training.render.photometry import add_noise, develop
from clipspect.training.render.structure import STRUCTURES, Ground, Structure, add_structure
from clipspect.training.render.textures import HELD_OUT_TEXTURES, TRAINING_TEXTURES, Texture, draw_surfaces


@dataclass(frozen=True)
class World:
    """Kinds of content for scenes."""

    textures: Mapping[str, Texture]
    shapes: Mapping[str, Shape]
    object_share: float = 0.45
    """Share of scenes with a part over a background; the rest are surfaces."""
    structures: Mapping[str, Structure] = field(default_factory=lambda: STRUCTURES)
    """Structures that look unusual but are normal."""
    defects: Mapping[str, Defect] = field(default_factory=lambda: DEFECTS)
    materials: Tensor | None = None
    """(M, 3, T, T) bytes: images of real materials for some surfaces."""
    camera: bool = True
    """Whether to apply vignette, focus, sharpening, exposure and contrast; noise is always applied."""


TRAINING = World(TRAINING_TEXTURES, TRAINING_SHAPES)
HELD_OUT = World(HELD_OUT_TEXTURES, HELD_OUT_SHAPES)
"""Kinds never rendered in training: for validation and for the demo images."""
_SIMPLE_TEXTURES = ("mottled", "granular", "plain")
_WITHOUT: Mapping[str, World] = {
    "objects": replace(TRAINING, object_share=0.0),
    "structure": replace(TRAINING, structures={}),
    "large defects": replace(TRAINING, defects={k: v for k, v in DEFECTS.items() if k not in LARGE}),
    "textures": replace(TRAINING, textures={k: TRAINING_TEXTURES[k] for k in _SIMPLE_TEXTURES}),
    "camera": replace(TRAINING, camera=False),
}


def training_world(leave_out: str = "") -> World:
    """Return the world of training scenes, or, for ablations, the same without one of its parts.

    Raises:
        UsageError: there is no such part.
    """
    if leave_out and leave_out not in _WITHOUT:
        raise UsageError(f"no part {leave_out!r} of the renderer; known are {sorted(_WITHOUT)}")
    return _WITHOUT[leave_out] if leave_out else TRAINING


@dataclass(frozen=True)
class Scenes:
    """N scenes. Both images of a scene are equal except for the defect and the sensor noise."""

    clean: Tensor
    """(N, 3, S, S) in [0, 1]."""
    defective: Tensor
    """(N, 3, S, S) in [0, 1]."""
    mask: Tensor
    """(N, S, S) of 0 and 1: visibly changed pixels; empty if the defect is invisible."""
    nouns: Sequence[str]
    """Object name of the part or surface."""
    defects: Sequence[str]
    """The first defect's kind, a key of ``DEFECTS``."""


_SECOND_DEFECT = 0.15
_MATERIAL_SHARE = 0.35
_LEAST_AREA = 1 / 4096
"""Masks smaller than this share of the image are emptied, because the defect is invisible."""


def _draw_ground(c: Canvas, n: int, world: World) -> tuple[Ground, list[str]]:
    rows = c.some(n, world.object_share)
    picture, nouns = draw_surfaces(c, n, world.textures, plain=0.05)
    if world.materials is not None:
        lay_materials(c, picture, world.materials, _MATERIAL_SHARE)
    ground = Ground(picture, torch.ones(n, c.size, c.size, device=c.device), picture.clone())
    if len(rows):
        material, materials = draw_surfaces(c, len(rows), world.textures, plain=0.5)
        behind, _ = draw_surfaces(c, len(rows), TRAINING_TEXTURES, plain=0.6)
        if world.materials is not None:
            lay_materials(c, material, world.materials, _MATERIAL_SHARE)
            lay_materials(c, behind, world.materials, _MATERIAL_SHARE)
        pose = draw_pose(c, len(rows))
        drawn = draw_parts(c, material, behind, pose, world.shapes, materials)
        ground.picture[rows], ground.part[rows], ground.background[rows] = drawn[:3]
        ground.copies[rows] = pose.copies
        for row, noun in zip(rows.tolist(), drawn[3], strict=True):
            nouns[row] = noun
    add_structure(c, ground, world.structures)
    return ground, nouns


def add_defects(c: Canvas, ground: Ground, kinds: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, S, S) with a defect of the given kind each, and the defect regions (N, S, S)."""
    picture, region = ground.picture.clone(), torch.zeros_like(ground.part)
    for name in dict.fromkeys(kinds):
        rows = torch.tensor([row for row, kind in enumerate(kinds) if kind == name], device=c.device)
        changed, touched = DEFECTS[name].draw(c, ground.rows(rows))
        picture[rows], region[rows] = changed.clamp(0, 1), touched
    return picture, region


def visible_change(clean: Tensor, defective: Tensor, region: Tensor, noise_level: Tensor) -> Tensor:
    """Return an (N, S, S) mask of 0 and 1: pixels of the region whose change exceeds the sensor noise.

    A pixel counts on its own (a line), by the mean of its neighborhood (a faint large patch), and together with the
    unchanged specks in between (roughened texture).
    """
    difference = defective - clean
    alone = difference.abs().amax(1) > 0.03 + noise_level
    together = soften(difference, 2).abs().amax(1) > 0.02 + 0.4 * noise_level
    near = 1 - grow(1 - grow((alone | together).float(), 2), 1)
    mask = near * (region > 0.3)
    seen = mask.mean((1, 2), keepdim=True) >= _LEAST_AREA
    return mask * seen


def draw_in_batches(c: Canvas, n: int, world: World, batch: int) -> Scenes:
    """Draw N scenes, at most ``batch`` at once; what is drawn depends on that number too. Results are on the CPU."""
    parts = [draw_scenes(c, min(batch, n - done), world) for done in range(0, n, batch)]
    return Scenes(
        clean=torch.cat([part.clean for part in parts]).cpu(),
        defective=torch.cat([part.defective for part in parts]).cpu(),
        mask=torch.cat([part.mask for part in parts]).cpu(),
        nouns=[noun for part in parts for noun in part.nouns],
        defects=[kind for part in parts for kind in part.defects],
    )


def draw_scenes(c: Canvas, n: int, world: World = TRAINING) -> Scenes:
    """Draw N scenes; about one in twelve has an invisible defect and so an empty mask."""
    ground, nouns = _draw_ground(c, n, world)
    names = list(world.defects)
    weights = [defect.weight for defect in world.defects.values()]
    kinds = [names[i] for i in c.weighted(n, weights).tolist()]
    picture, region = add_defects(c, ground, kinds)
    second = c.some(n, _SECOND_DEFECT)
    if len(second):
        more = [names[i] for i in c.weighted(len(second), weights).tolist()]
        again = replace(ground.rows(second), picture=picture[second])
        picture[second], touched = add_defects(c, again, more)
        region[second] = torch.maximum(region[second], touched)
    clean, defective, level = develop(c, ground.picture, picture, camera=world.camera)
    mask = visible_change(clean, defective, region, level)
    return Scenes(add_noise(c, clean, level), add_noise(c, defective, level), mask, nouns, kinds)
