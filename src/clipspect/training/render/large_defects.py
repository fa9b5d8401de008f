"""Defects of large areas, and the table of all kinds with the words people use for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.render import defects
from clipspect.training.render.defects import Changed, on_part
from clipspect.training.render.fields import Canvas, inside, outline, soften, standardise
from clipspect.training.render.structure import Ground, blend, ink
from clipspect.training.render.textures import TRAINING_TEXTURES, draw_surfaces, grey_of


def _area(c: Canvas, g: Ground) -> Tensor:
    """(N, S, S) a large soft region: a big rough blob, a band, or one side of a wavy front."""
    n, centre = len(g.picture), on_part(c, g)
    blob = c.blob(centre, c.log_uniform(n, 0.25, 1.0), c.uniform(n, 0.1, 0.9))
    turn = c.angle(n)
    across = (c.x - centre[:, 0, None, None]) * turn.cos() + (c.y - centre[:, 1, None, None]) * turn.sin()
    front = across / c.uniform(n, 0.3, 0.8) + c.uniform(n, 0.05, 0.4) * c.noise(n, c.uniform(n, 1.6, 2.4))
    way = c.uniform(n)
    distance = torch.where(way < 0.55, blob, torch.where(way < 0.8, front.abs() * 2, 1 + front))
    return inside(distance, c.log_uniform(n, 0.03, 1.2)) * g.part


def discolouration(c: Canvas, g: Ground) -> Changed:
    """A region of another hue or tone."""
    n, region = len(g.picture), _area(c, g)
    gain = torch.exp(0.4 * c.normal(n, 1, 1, 1) + 0.2 * c.normal(n, 3, 1, 1))
    mean = g.picture.mean((2, 3))
    grey = ((mean.amax(1) - mean.amin(1)) < 0.03).view(n, 1, 1, 1)
    gain = torch.where(grey, gain.mean(1, keepdim=True).expand_as(gain), gain)
    return g.picture * (1 + region[:, None] * (gain - 1)), region


def uneven(c: Canvas, g: Ground) -> Changed:
    """A large patch ground, coated or cured differently: tone and roughness both change."""
    n, region = len(g.picture), _area(c, g)
    base = soften(g.picture, 4)
    detail = (g.picture - base) * c.uniform(n, 0.0, 2.5)[:, None]
    grain = c.uniform(n, 0, 0.2) * c.noise(n, c.uniform(n, 0.1, 1.8), anisotropy=c.log_uniform(n, 0.05, 1))
    tone = torch.exp(c.uniform(n, 0.08, 0.5) * (2 * c.chance(n, 0.5) - 1))
    other = base * (tone * (1 + grain))[:, None] + detail
    return blend(g.picture, other.clamp(0, 1), region, c.uniform(n, 0.6, 1)), region


def worn(c: Canvas, g: Ground) -> Changed:
    """The texture is rubbed away or roughened."""
    n, region = len(g.picture), _area(c, g)
    smooth = soften(soften(g.picture, 3), 2) * c.uniform(n, 0.8, 1.2)[:, None]
    grain = c.noise(n, c.uniform(n, 0, 1), anisotropy=c.log_uniform(n, 0.05, 1))
    rough = g.picture + c.uniform(n, 0.1, 0.4)[:, None] * grain[:, None] * g.picture.mean(
        (1, 2, 3), keepdim=True
    )
    other = torch.where(c.uniform(n)[:, None] < 0.4, smooth, rough.clamp(0, 1))
    return blend(g.picture, other, region, c.uniform(n, 0.6, 1)), region


def bare(c: Canvas, g: Ground) -> Changed:
    """A large area is of another surface altogether: no coating, another finish, a wrong material."""
    n, region = len(g.picture), _area(c, g)
    other, _ = draw_surfaces(c, n, TRAINING_TEXTURES, plain=0.15)
    grey = (g.picture.amax(1) - g.picture.amin(1)).mean((1, 2)) < 0.03
    other = torch.where(grey.view(n, 1, 1, 1), grey_of(other).expand_as(other), other)
    own_mean, other_mean = g.picture.mean((2, 3), keepdim=True), other.mean((2, 3), keepdim=True)
    tone = torch.exp(0.3 * c.normal(n))[:, None] * own_mean
    alike = c.uniform(n)[:, None]  # 1: told by its texture and a shade of tone alone
    other = (other - other_mean) * c.uniform(n, 0.3, 1)[:, None] + alike * tone + (1 - alike) * other_mean
    return blend(g.picture, other.clamp(0, 1), region, c.uniform(n, 0.6, 1)), region


def fraying(c: Canvas, g: Ground) -> Changed:
    """A stretch of the rim, or a strip, is ragged: streaks of background and of loose matter."""
    n = len(g.picture)
    rim = outline(g.part)
    has_rim = (rim.flatten(1).sum(1) > 4).float().view(n, 1, 1)
    centre = c.place(rim + 1e-4 * g.part)
    near = inside(c.blob(centre, c.log_uniform(n, 0.2, 0.9), c.uniform(n, 0.2, 0.7)), c.uniform(n, 0.2, 0.6))
    band = soften((g.part > 0.5).float(), max(2, c.size // 12))
    near = near * (has_rim * (4 * band * (1 - band)) ** 2 + 1 - has_rim)
    tufts = standardise(c.noise(n, c.uniform(n, 0.3, 1.0), anisotropy=c.uniform(n, 0.04, 0.5)))
    torn = torch.sigmoid((tufts - c.uniform(n, -0.8, 0.6)) * c.uniform(n, 2, 8))
    region = (near * g.part).clamp(0, 1)
    loose = ink(c, g.picture, region, 0.45, 0.45)
    loose = torch.where(c.uniform(n)[:, None] < 0.35, g.background, loose.expand_as(g.picture))
    return blend(g.picture, loose, region * torn, c.uniform(n, 0.4, 1)), region


def smear(c: Canvas, g: Ground) -> Changed:
    """A streaked film: paste, oil or glue drawn across the part."""
    n, centre, turn = len(g.picture), on_part(c, g), c.angle(len(g.picture))
    x, y = c.x - centre[:, 0, None, None], c.y - centre[:, 1, None, None]
    along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    streaks = c.noise(n, c.uniform(n, 0.6, 1.4), anisotropy=c.uniform(n, 0.03, 0.15), angle=turn)
    length, width = c.uniform(n, 0.3, 1.2), c.uniform(n, 0.08, 0.4)
    distance = ((along / length) ** 2 + (across / width) ** 2).sqrt() + 0.25 * streaks
    region = inside(distance, c.uniform(n, 0.1, 0.6)) * g.part
    film = ink(c, g.picture, region, 0.45, 0.4)
    veil = region * torch.sigmoid(streaks * 1.5 + c.uniform(n, 0, 2))
    return blend(g.picture, film, veil, c.uniform(n, 0.2, 0.8)), region


def odd_part(c: Canvas, g: Ground) -> Changed:
    """Make one of several equal parts missing, turned, displaced, of another size or of another color.

    Only the comparison with the other parts shows it. A single part loses one side instead, or its color there.
    """
    n = len(g.picture)
    copies = g.copies
    odd = (copies + 1) % 2
    column, row = (((axis * copies + odd + 1) / 2).floor() for axis in (c.x, c.y))
    first = torch.where(copies == 3, -1.0, 0.0)
    at_x, at_y = ((c.uniform(n) * copies).floor().clamp_max(copies - 1) + first for _axis in range(2))
    cell = ((column == at_x) & (row == at_y)).float()
    centre_x, centre_y = ((2 * at - odd) / copies for at in (at_x, at_y))

    way = c.uniform(n)
    surface = g.part.flatten(1).amin(1).view(n, 1, 1) > 0.9  # nothing behind it shows
    missing, coloured = way < 0.35, ((way >= 0.35) & (way < 0.55)) | surface
    turn = torch.where(way < 0.8, c.uniform(n, 0.25, 6.0), torch.zeros_like(way))
    scale = torch.where(way >= 0.9, c.uniform(n, 1.15, 1.7), torch.ones_like(way))
    shift = torch.where((way >= 0.8) & (way < 0.9), 0.35 / copies, torch.zeros_like(way))
    heading = c.angle(n)
    x, y = c.x - centre_x - shift * heading.cos(), c.y - centre_y - shift * heading.sin()
    x, y = (x * turn.cos() + y * turn.sin()) * scale, (y * turn.cos() - x * turn.sin()) * scale
    reach = 1 / copies
    kept = ((x.abs() < reach) & (y.abs() < reach)).float()
    grid = torch.stack([x + centre_x, y + centre_y], -1)
    moved = F.grid_sample(g.picture, grid, padding_mode="border", align_corners=False)
    part = F.grid_sample(g.part[:, None], grid, padding_mode="border", align_corners=False)[:, 0] * kept
    over = moved * part[:, None] + g.background * (1 - part[:, None])
    gain = torch.exp(0.5 * c.normal(n, 1, 1, 1) + 0.35 * c.normal(n, 3, 1, 1))
    over = torch.where(coloured[:, None], g.picture * gain, torch.where(missing[:, None], g.background, over))
    touched = torch.where(coloured | missing, g.part, torch.maximum(g.part, part)) * cell

    turned, side = c.angle(n), c.uniform(n, 0.1, 0.6)
    cut = torch.sigmoid((c.x * turned.cos() + c.y * turned.sin() - side) / c.pixel) * g.part
    single = copies == 1
    over = torch.where(single[:, None] & ~coloured[:, None], g.background, over)
    touched = torch.where(single, cut, touched)
    return blend(g.picture, over.clamp(0, 1), touched, c.uniform(n, 0.9, 1)), touched


@dataclass(frozen=True)
class Defect:
    """A kind of defect: how it is drawn, how often, and what people call it."""

    draw: Callable[[Canvas, Ground], Changed]
    weight: float
    words: tuple[str, ...]


LARGE = ("discolouration", "uneven", "bare", "worn", "fraying", "smear")
"""The kinds in ``DEFECTS`` that cover areas."""
DEFECTS: Mapping[str, Defect] = {
    "scratch": Defect(defects.scratch, 1.1, ("scratch", "scratches", "abrasion")),
    "crack": Defect(defects.crack, 1.6, ("crack", "cracks", "fracture")),
    "hole": Defect(defects.hole, 1.2, ("hole", "blowhole", "pore")),
    "pits": Defect(defects.pits, 0.8, ("pits", "pitting", "small holes")),
    "dent": Defect(defects.dent, 0.8, ("dent", "bump")),
    "stain": Defect(defects.stain, 1.1, ("stain", "contamination", "dirt")),
    "fibre": Defect(defects.fibre, 0.6, ("thread", "fiber", "foreign object")),
    "foreign patch": Defect(defects.foreign_patch, 0.7, ("foreign material", "misplaced patch")),
    "distortion": Defect(defects.distortion, 0.7, ("deformation", "distortion")),
    "broken edge": Defect(defects.broken_edge, 1.1, ("broken edge", "missing piece", "chip", "break")),
    "burr": Defect(defects.burr, 0.7, ("burr", "excess material", "bulge", "bridge")),
    "flaking": Defect(defects.flaking, 0.7, ("flaking", "peeling", "delamination")),
    "discolouration": Defect(discolouration, 0.9, ("discoloration", "color defect")),
    "uneven": Defect(uneven, 1.1, ("uneven surface", "uneven patch")),
    "bare": Defect(bare, 0.9, ("bare area", "missing coating", "wrong material")),
    "worn": Defect(worn, 0.9, ("worn area", "roughness")),
    "fraying": Defect(fraying, 0.8, ("fraying", "frayed edge")),
    "smear": Defect(smear, 0.6, ("smear", "glue", "oil")),
    "odd part": Defect(odd_part, 1.0, ("missing part", "misplaced part", "wrong part", "wrong color")),
}
