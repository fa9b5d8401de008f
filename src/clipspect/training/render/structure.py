"""Structure that looks odd but is normal: light, shadows, joints, lines, holes by design, prints, blemishes, borders.

The detector must learn that what repeats, what is straight and regular, what varies slowly and what is as faint as
the rest of the surface is no defect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipspect.training.render.fields import Canvas, inside, slope
from clipspect.training.render.objects import box
from clipspect.training.render.textures import colour, grey_of


@dataclass
class Ground:
    """A scene before any defect: the picture, what of it is the inspected part, and what lies behind that."""

    picture: Tensor
    """(N, 3, S, S) in [0, 1]."""
    part: Tensor
    """(N, S, S) soft membership in [0, 1]; all ones for a surface that fills the frame."""
    background: Tensor
    """(N, 3, S, S): what shows where a piece of the part is gone."""
    copies: Tensor = field(default_factory=lambda: torch.ones(()))
    """(N, 1, 1) rows and columns of equal parts; ones where it is not given."""

    def __post_init__(self) -> None:
        """Expand the default of ``copies``."""
        if not self.copies.dim():
            self.copies = torch.ones(len(self.picture), 1, 1, device=self.picture.device)

    def rows(self, index: Tensor) -> Ground:
        """The scenes of the given indices."""
        return Ground(self.picture[index], self.part[index], self.background[index], self.copies[index])


def ink(c: Canvas, picture: Tensor, mask: Tensor, dark: float, light: float) -> Tensor:
    """(N, 3, 1, 1) a colour that contrasts with what it covers.

    Darker with probability ``dark``, lighter with ``light``, else another hue; grey on grey pictures.
    """
    n = len(picture)
    weight = mask[:, None]
    local = (picture * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-3)
    darker = local * c.uniform(n, 0, 0.75)[:, None]
    lighter = local + (1 - local) * c.uniform(n, 0.2, 1)[:, None]
    hue = colour(c, n)
    greyish = (local.amax(1, keepdim=True) - local.amin(1, keepdim=True)) < 0.04
    hue = torch.where(greyish & (c.uniform(n)[:, None] < 0.85), grey_of(hue).expand_as(hue), hue)
    way = c.uniform(n)[:, None]
    return torch.where(way < dark, darker, torch.where(way < dark + light, lighter, hue))


def blend(picture: Tensor, over: Tensor, mask: Tensor, opacity: Tensor) -> Tensor:
    """``over`` laid on the picture where the mask (N, S, S) says, at an opacity (N, 1, 1)."""
    share = (mask * opacity)[:, None]
    return picture * (1 - share) + over * share


def _mostly_upright(c: Canvas, n: int) -> Tensor:
    upright = c.chance(n, 0.5) * (torch.pi / 2) + 0.03 * c.normal(n)
    return torch.where(c.uniform(n) < 0.7, upright, c.uniform(n, 0, torch.pi))


def _uneven_light(c: Canvas, g: Ground) -> None:
    n = len(g.picture)
    field = c.noise(n, c.uniform(n, 2.4, 4), anisotropy=c.log_uniform(n, 0.25, 1))
    g.picture = g.picture * (1 + (c.uniform(n, 0.03, 0.3) * field).clamp(-0.75, 1.5))[:, None]


def _lines(c: Canvas, g: Ground) -> None:
    n = len(g.picture)
    x, y = c.turned(n, _mostly_upright(c, n))
    period = c.uniform(n, 0.25, 2.2)
    distance = (((x + c.uniform(n, 0, 2)) / period + 0.5) % 1 - 0.5).abs() * period
    half = c.log_uniform(n, 0.3, 6) * c.pixel / 2
    mask = torch.sigmoid((half - distance) / c.pixel * c.uniform(n, 1.2, 5)) * g.part
    dashed = c.chance(n, 0.2)
    dash = dashed * (torch.sin(y * c.uniform(n, 5, 40)) > -0.3) + (1 - dashed)
    g.picture = blend(g.picture, ink(c, g.picture, mask, 0.5, 0.3), mask * dash, c.uniform(n, 0.2, 1))


def _joint(c: Canvas, g: Ground) -> None:
    """Two halves of slightly different tone that meet in a straight seam."""
    n = len(g.picture)
    x, _ = c.turned(n, _mostly_upright(c, n))
    offset = x + c.uniform(n, -0.7, 0.7)
    other = g.picture.roll(c.size // 3, 2) * torch.exp(0.2 * c.normal(n))[:, None]
    half = torch.sigmoid(offset / c.pixel * 4)[:, None] * (g.part > 0.5).float()[:, None]
    picture = g.picture * (1 - half) + other * half
    seam = torch.sigmoid((c.log_uniform(n, 0.4, 3) * c.pixel / 2 - offset.abs()) / c.pixel * 4) * g.part
    g.picture = blend(picture, ink(c, picture, seam, 0.7, 0.2), seam, c.chance(n, 0.7) * c.uniform(n, 0.3, 1))


def _holes(c: Canvas, g: Ground) -> None:
    """Holes, studs or dots by design: equal, and on a regular lattice."""
    n = len(g.picture)
    x, y = c.turned(n, _mostly_upright(c, n))
    pitch = c.uniform(n, 0.25, 0.9)
    x, y = (x + c.uniform(n)) % pitch - pitch / 2, (y + c.uniform(n)) % pitch - pitch / 2
    size = pitch * c.uniform(n, 0.08, 0.35)
    round_ = c.chance(n, 0.7)
    distance = round_ * ((x * x + y * y).sqrt() - size) + (1 - round_) * box(
        x, y, size, size * 0.7, size * 0.2
    )
    mask = torch.sigmoid(-distance / c.pixel * 3) * g.part
    lit = g.picture * (1 + (c.uniform(n, 0, 0.8) * slope(mask, c.angle(n))).clamp(-0.6, 0.6))[:, None]
    g.picture = blend(lit, ink(c, g.picture, mask, 0.7, 0.2), mask, c.uniform(n, 0.3, 1))


def _print(c: Canvas, g: Ground) -> None:
    """A printed label: rows of short upright strokes, now and then on a plate of its own."""
    n = len(g.picture)
    x, y = c.turned(n, c.chance(n, 0.3) * (torch.pi / 2) + 0.04 * c.normal(n))
    x, y = x - c.uniform(n, -0.5, 0.5), y - c.uniform(n, -0.5, 0.5)
    width, height = c.uniform(n, 0.2, 0.6), c.uniform(n, 0.08, 0.25)
    label = torch.sigmoid(-box(x, y, width, height, 0.02) / c.pixel * 3) * g.part
    plate = blend(
        g.picture, ink(c, g.picture, label, 0.2, 0.6), label, c.chance(n, 0.5) * c.uniform(n, 0.4, 1)
    )
    glyph, row = c.uniform(n, 0.05, 0.12), c.uniform(n, 0.1, 0.2)
    column_number, row_number = (x / glyph).floor(), (y / row).floor()
    kind = torch.frac(
        torch.sin(column_number * 12.99 + row_number * 78.23 + c.uniform(n, 0, 9)) * 43758.5
    ).abs()
    u, v = x / glyph - column_number - 0.5, y / row - row_number - 0.5
    stroke = torch.where(
        kind < 0.4, u.abs(), torch.where(kind < 0.75, (v - 0.2).abs() * 1.5, (u.abs() - 0.25).abs())
    )
    letters = torch.sigmoid((0.14 - stroke) * 20) * (v.abs() < 0.33) * (u.abs() < 0.38) * (kind < 0.9)
    letters = letters * (box(x, y, width * 0.9, height * 0.85, 0.0) < 0) * g.part
    g.picture = blend(plate, ink(c, plate, letters, 0.6, 0.3), letters, c.uniform(n, 0.3, 1))


def _border(c: Canvas, g: Ground) -> None:
    """The surface ends near the frame's edge: straight or arched, sharp or soft, some with a darker rim."""
    n = len(g.picture)
    tilt = 0.04 * c.normal(n)
    x = c.x - c.uniform(n, -0.1, 0.1) + tilt * c.y
    y = c.y - c.uniform(n, -0.1, 0.1) - tilt * c.x
    open_x, open_y = c.chance(n, 0.35) * 9, c.chance(n, 0.35) * 9
    y = y + c.chance(n, 0.3) * c.uniform(n, -0.25, 0.25) * (1 - c.x * c.x)
    corner = c.uniform(n) ** 2 * 0.35
    distance = box(x, y, c.uniform(n, 0.7, 1.05) + open_x, c.uniform(n, 0.7, 1.05) + open_y, corner)
    distance = distance + 0.02 * c.uniform(n) ** 3 * c.noise(n, c.uniform(n, 1.5, 2.5))
    part = torch.sigmoid(-distance / c.pixel * c.log_uniform(n, 0.4, 3))
    dark = c.uniform(n, 0, 0.25)[:, None].expand(-1, 3, -1, -1)
    behind = torch.where(c.uniform(n)[:, None] < 0.7, dark, colour(c, n))
    behind = (behind * (1 + 0.1 * c.noise(n, c.uniform(n, 0.5, 2.5)))[:, None]).clamp(0, 1)
    rim = (
        c.chance(n, 0.5) * c.uniform(n, -0.3, 0.5) * torch.exp(-((distance / c.uniform(n, 0.02, 0.15)) ** 2))
    )
    g.picture = g.picture * (1 - rim)[:, None] * part[:, None] + behind * (1 - part[:, None])
    g.background, g.part = behind, part


def _highlight(c: Canvas, g: Ground) -> None:
    """A gleam: a straight or gently bent band in which a shiny surface mirrors the lamp."""
    n = len(g.picture)
    x, _ = c.turned(n, _mostly_upright(c, n), warp=0.15)
    offset = (x - c.uniform(n, -1, 1)) / c.log_uniform(n, 0.04, 0.6)
    band = torch.exp(-(offset.abs() ** c.uniform(n, 1, 3))) * (g.part > 0.5)
    g.picture = g.picture * (1 + c.uniform(n, 0.1, 0.9) * band)[:, None]


def _shadow(c: Canvas, g: Ground) -> None:
    """Something outside the frame keeps the light off a straight-edged share of it, softly."""
    n = len(g.picture)
    x, _ = c.turned(n, c.angle(n))
    dark = torch.sigmoid((x - c.uniform(n, -0.2, 0.9)) / c.log_uniform(n, 0.03, 0.3) * 3)
    g.picture = g.picture * (1 - c.uniform(n, 0.1, 0.55) * dark)[:, None]


def _blemishes(c: Canvas, g: Ground) -> None:
    """Traces of ordinary use: faint specks, hairlines and clouds, several at once, none of them a defect."""
    n = len(g.picture)
    veil = torch.zeros(n, c.size, c.size, device=c.device)
    specks = c.uniform(n, 0.03, 0.16)
    for _speck in range(10):
        centre = torch.stack([c.uniform(n, -1, 1), c.uniform(n, -1, 1)], 1)[..., 0, 0]
        spot = inside(c.blob(centre, c.log_uniform(n, 0.008, 0.05), 0.0), 0.5)
        veil = veil + spot * specks * c.normal(n).clamp(-1, 1) * c.chance(n, 0.7)
    for _hairline in range(3):
        centre = torch.stack([c.uniform(n, -1, 1), c.uniform(n, -1, 1)], 1)[..., 0, 0]
        path = c.path(centre, 5, c.log_uniform(n, 0.2, 1.6), c.uniform(n, 0, 0.1))
        distance, _ = c.path_distance(path, (0.4 * c.pixel * torch.ones(n, 4, device=c.device)))
        line = torch.sigmoid(-distance / (0.5 * c.pixel))
        veil = veil + line * c.uniform(n, -0.12, 0.12) * c.chance(n, 0.5)
    cloud = c.noise(n, c.uniform(n, 1.6, 2.6)).clamp(-2, 2)
    veil = veil + c.chance(n, 0.5) * c.uniform(n, 0, 0.06) * cloud
    g.picture = g.picture * (1 + veil * (g.part > 0.5))[:, None]


@dataclass(frozen=True)
class Structure:
    """A kind of normal structure: how it is laid on scenes in place, and on what share of them."""

    lay: Callable[[Canvas, Ground], None]
    share: float
    surfaces_only: bool = False
    """Only where the part fills the frame."""


STRUCTURES: Mapping[str, Structure] = {
    "uneven light": Structure(_uneven_light, 0.4),
    "joint": Structure(_joint, 0.08),
    "lines": Structure(_lines, 0.2),
    "holes": Structure(_holes, 0.03),
    "print": Structure(_print, 0.05),
    "blemishes": Structure(_blemishes, 0.35),
    "highlight": Structure(_highlight, 0.15),
    "border": Structure(_border, 0.3, surfaces_only=True),
    "shadow": Structure(_shadow, 0.12),
}


def add_structure(c: Canvas, ground: Ground, kinds: Mapping[str, Structure] = STRUCTURES) -> None:
    """Lay normal structure on some of the scenes, in place."""
    full = ground.part.flatten(1).amin(1) > 0.9
    for kind in kinds.values():
        wanted = (c.uniform(len(full)) < kind.share).flatten()
        rows = (wanted & full if kind.surfaces_only else wanted).nonzero().flatten()
        if len(rows):
            some = ground.rows(rows)
            kind.lay(c, some)
            ground.picture[rows] = some.picture.clamp(0, 1)
            ground.part[rows], ground.background[rows] = some.part, some.background
