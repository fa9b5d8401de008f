"""Surface textures: tone fields (N, S, S), colored and lit to surfaces (N, 3, S, S)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.render.fields import Canvas, relief, smoothstep, standardise


@dataclass(frozen=True)
class Texture:
    """Kind of surface: its tone field function, names and frequency."""

    tone: Callable[[Canvas, int], Tensor]
    nouns: tuple[str, ...]
    weight: float


def _mottled(c: Canvas, n: int) -> Tensor:
    return c.noise(n, c.uniform(n, 0.6, 2.6))


def _spotted(c: Canvas, n: int) -> Tensor:
    spots = c.noise(n, 0.0, band=c.log_uniform(n, 4, 28))
    return torch.sigmoid((spots - c.uniform(n, -0.3, 1.5)) * c.uniform(n, 1.5, 8.0))


def _brushed(c: Canvas, n: int) -> Tensor:
    return c.noise(n, c.uniform(n, 0.4, 1.2), anisotropy=1 / c.uniform(n, 6, 60))


def _wood(c: Canvas, n: int) -> Tensor:
    x, _ = c.turned(n, c.angle(n), warp=0.12)
    drift = c.noise(n, c.uniform(n, 2, 3), anisotropy=c.uniform(n, 0.1, 0.4))
    phase = x * c.uniform(n, 4, 20) + drift * c.uniform(n, 0.5, 3)
    sharp = c.chance(n, 0.5)
    rings = sharp * (phase % 1.0) ** c.uniform(n, 1, 3) * 2 + (1 - sharp) * torch.sin(phase * 2)
    return rings + 0.25 * c.noise(n, c.uniform(n, 0.5, 1.0), anisotropy=c.uniform(n, 0.03, 0.1))


def _striped(c: Canvas, n: int) -> Tensor:
    x, _ = c.turned(n, c.angle(n), warp=0.05)
    waves = torch.tanh(torch.sin(x * c.log_uniform(n, 4, 60)) * c.uniform(n, 0.5, 5))
    return waves + 0.2 * c.noise(n, c.uniform(n, 0.4, 1.5))


def _woven(c: Canvas, n: int) -> Tensor:
    x, y = c.turned(n, c.angle(n), warp=0.04)
    pitch = c.log_uniform(n, 10, 70)
    warp, weft = torch.sin(x * pitch), torch.sin(y * pitch * c.uniform(n, 0.6, 1.4))
    over = (weft > 0).float()
    plain = c.chance(n, 0.5)
    cloth = plain * warp * weft + (1 - plain) * torch.maximum(warp * over, weft * (1 - over))
    return cloth + 0.25 * c.noise(n, c.uniform(n, 0.3, 1.5))


def _tiled(c: Canvas, n: int) -> Tensor:
    x, y = c.turned(n, c.angle(n), warp=0.02)
    pitch, joint = c.log_uniform(n, 1.2, 9), c.uniform(n, 0.04, 0.3)
    down = y * pitch * c.uniform(n, 0.6, 1.6)
    row = down.floor()
    across = x * pitch + 0.5 * c.chance(n, 0.5) * (row % 2) + c.uniform(n)
    column = across.floor()
    edge = torch.maximum((across - column - 0.5).abs(), (down - row - 0.5).abs())
    line = smoothstep((edge - 0.5 + joint) / (0.05 + 0.5 * joint))
    stone = torch.frac(torch.sin(row * 12.9898 + column * 78.233) * 43758.5453).abs()
    return 1 - 2 * line + c.uniform(n, 0, 0.6) * (stone - 0.5) + 0.2 * c.noise(n, c.uniform(n, 0.4, 2))


def _cellular(c: Canvas, n: int) -> Tensor:
    side = int(c.integers(1, 5, 12))
    rows, columns = torch.meshgrid(*[torch.arange(side, device=c.device)] * 2, indexing="ij")
    seeds = torch.stack([columns, rows], -1).view(1, -1, 2) + 0.5
    jitter = torch.rand(n, side * side, 2, generator=c.generator, device=c.device) - 0.5
    seeds = (seeds + jitter * c.uniform(n, 0.4, 1.2)) / side * 2.3 - 1.15
    x, y = c.turned(n, torch.zeros(n, 1, 1, device=c.device), warp=0.06)
    two, index = torch.cdist(torch.stack([x, y], -1).view(n, -1, 2), seeds).topk(2, -1, largest=False)
    gap = (two[..., 1] - two[..., 0]).view(n, c.size, c.size) * side
    cell = torch.frac(index[..., 0].float() * 0.61803).view(n, c.size, c.size)
    kind = c.uniform(n)
    walls = (kind < 0.6).float() * smoothstep(gap / c.uniform(n, 0.1, 0.8)) * 2
    return (
        walls + (kind > 0.35).float() * c.uniform(n, 0.3, 1.5) * cell + 0.2 * c.noise(n, c.uniform(n, 0.5, 2))
    )


def _granular(c: Canvas, n: int) -> Tensor:
    return c.noise(n, c.uniform(n, 0, 0.6)) + c.uniform(n) * c.noise(n, c.uniform(n, 1.5, 2.5))


def _plain(c: Canvas, n: int) -> Tensor:
    turn = c.angle(n)
    ramp = (c.x * turn.cos() + c.y * turn.sin()) * c.uniform(n)
    return ramp + c.uniform(n, 0.01, 0.3) * c.noise(n, c.uniform(n, 0.2, 2.5))


def _drawn(c: Canvas, n: int) -> Tensor:
    """Fine parallel lines, a few of them far stronger than the rest, that fade in and out along their way."""
    turn = c.uniform(n, 0.0, torch.pi)
    lines = c.noise(n, c.uniform(n, 0.1, 0.8), anisotropy=1 / c.log_uniform(n, 40, 300), angle=turn)
    lines = lines * lines.abs() ** c.uniform(n, 0, 1.2)
    fade = 1 + c.uniform(n, 0, 0.6) * c.noise(n, c.uniform(n, 1.2, 2.4))
    return lines * fade + c.uniform(n, 0, 0.8) * c.noise(n, c.uniform(n, 0, 1))


def _veined(c: Canvas, n: int) -> Tensor:
    """Sharp veins where a smooth field passes zero."""
    field = c.noise(n, c.uniform(n, 1.0, 2.2), anisotropy=c.log_uniform(n, 0.2, 1))
    veins = -torch.exp(-field.abs() / c.log_uniform(n, 0.03, 0.5))
    return veins + c.uniform(n, 0, 0.6) * c.noise(n, c.uniform(n, 0.2, 2))


def _speckled(c: Canvas, n: int) -> Tensor:
    """Sparse specks on an even ground: noise of heavy tails."""
    specks = c.noise(n, 0.0, band=c.log_uniform(n, 12, 60))
    specks = specks.sign() * (specks.abs() - c.uniform(n, 0.8, 2.2)).clamp_min(0)
    return specks + c.uniform(n, 0.05, 0.5) * c.noise(n, c.uniform(n, 0, 2))


def _leaves(c: Canvas, n: int) -> Tensor:
    """Flat shapes of all sizes that cover each other ("dead leaves"): edges at every scale, as in images."""
    tone = 0.3 * c.noise(n, c.uniform(n, 0.5, 2))
    largest, spread = c.log_uniform(n, 0.12, 0.7), c.uniform(n, 0.3, 1)
    square = c.uniform(n)
    for _leaf in range(70):
        radius = largest * c.log_uniform(n, 0.12, 1)
        x, y = c.x - c.uniform(n, -1.1, 1.1), c.y - c.uniform(n, -1.1, 1.1)
        turn = c.angle(n)
        x, y = x * turn.cos() + y * turn.sin(), (y * turn.cos() - x * turn.sin()) / c.uniform(n, 0.3, 1)
        distance = torch.where(square < 0.5, (x * x + y * y).sqrt(), torch.maximum(x.abs(), y.abs()))
        leaf = torch.sigmoid((radius - distance) / c.pixel * 2)
        tone = tone + leaf * (spread * c.normal(n) - tone)
    return tone + c.uniform(n, 0, 0.3) * c.noise(n, c.uniform(n, 0, 1.5))


_CHANNELS = 8


def _organic(c: Canvas, n: int) -> Tensor:
    """What an untrained convolutional network makes of noise, each scene its own network: wholes no formula draws
    (Baradad et al., "Learning to see by looking at noise", arXiv 2106.05963).
    """
    side = 8
    field = c.normal(n, _CHANNELS, side, side)
    fine = c.log_uniform(n, 0.03, 0.8)
    while side < c.size:
        side = min(2 * side, c.size)
        field = F.interpolate(field, (side, side), mode="bilinear")
        share = fine * torch.rand(n, _CHANNELS, 1, generator=c.generator, device=c.device)
        field = field + share[..., None] * c.normal(n, _CHANNELS, side, side)
        kernel = c.normal(n * _CHANNELS, _CHANNELS, 3, 3)
        mixed = F.conv2d(F.pad(field.view(1, -1, side, side), (1, 1, 1, 1), mode="reflect"), kernel, groups=n)
        field = F.leaky_relu(F.instance_norm(mixed).view(n, _CHANNELS, side, side), 0.2)
    weights = c.normal(n, _CHANNELS, 1, 1)
    return (weights * field).sum(1)


def _lathe(c: Canvas, n: int) -> Tensor:
    x, y = c.x - c.uniform(n, -0.4, 0.4), c.y - c.uniform(n, -0.4, 0.4)
    radius = (x * x + y * y).sqrt()
    wobble = 0.3 * c.noise(n, c.uniform(n, 1.5, 2.5))
    rings = torch.sin(radius * c.log_uniform(n, 30, 120) + wobble) + torch.sin(radius * c.uniform(n, 8, 25))
    return rings + c.uniform(n, 0.3, 1.0) * c.noise(n, c.uniform(n, 0.3, 1.0))


def _tread(c: Canvas, n: int) -> Tensor:
    x, y = c.turned(n, c.angle(n))
    pitch = c.uniform(n, 2.5, 6)
    column, row = (x * pitch).floor(), (y * pitch).floor()
    u, v = x * pitch - column - 0.5, y * pitch - row - 0.5
    flip = ((column + row) % 2) * 2 - 1
    long, short = (u + flip * v) * 0.707, (v - flip * u) * 0.707
    bump = torch.sigmoid((0.42 - ((long / 0.9) ** 2 + (short / 0.3) ** 2).sqrt()) * 14)
    return 2 * bump + 0.25 * c.noise(n, c.uniform(n, 0.4, 1.5))


def _knitted(c: Canvas, n: int) -> Tensor:
    x, y = c.turned(n, c.angle(n), warp=0.03)
    pitch = c.uniform(n, 18, 45)
    loops = torch.sin(y * pitch + 1.2 * torch.sin(x * pitch).abs() * 2) * (
        0.6 + 0.4 * torch.cos(x * pitch * 2)
    )
    return loops + 0.25 * c.noise(n, c.uniform(n, 0.3, 1.2))


TRAINING_TEXTURES: Mapping[str, Texture] = {
    "mottled": Texture(_mottled, ("stone", "concrete", "plaster", "paper", "marble"), 0.17),
    "spotted": Texture(_spotted, ("leather", "foam", "sponge", "pebbles", "dotted surface"), 0.08),
    "brushed": Texture(_brushed, ("brushed metal", "steel", "aluminium"), 0.11),
    "wood": Texture(_wood, ("wood", "plank", "wooden board"), 0.07),
    "striped": Texture(_striped, ("striped fabric", "corrugated sheet", "ribbed surface"), 0.07),
    "woven": Texture(_woven, ("fabric", "cloth", "carpet", "mesh", "textile"), 0.09),
    "tiled": Texture(_tiled, ("tile", "bricks", "grid", "tiled wall", "paving"), 0.08),
    "cellular": Texture(_cellular, ("cells", "scales", "cobblestone", "mosaic"), 0.04),
    "granular": Texture(_granular, ("asphalt", "granite", "sandpaper", "gravel", "sand"), 0.13),
    "drawn": Texture(_drawn, ("rolled steel", "ground metal", "drawn metal", "sheet"), 0.1),
    "veined": Texture(_veined, ("marble", "veined stone", "cork"), 0.06),
    "speckled": Texture(_speckled, ("terrazzo", "cast iron", "speckled plastic"), 0.07),
    "leaves": Texture(_leaves, ("chipboard", "mosaic", "camouflage", "mixed material"), 0.07),
    "organic": Texture(_organic, ("bark", "foam", "mineral", "hide", "sediment"), 0.12),
    "plain": Texture(_plain, ("plastic", "metal", "glass", "ceramic", "rubber", "paint"), 0.16),
}
HELD_OUT_TEXTURES: Mapping[str, Texture] = {
    "lathe": Texture(_lathe, ("turned metal",), 0.35),
    "tread": Texture(_tread, ("chequer plate",), 0.3),
    "knitted": Texture(_knitted, ("knitwear",), 0.35),
}


def colour(c: Canvas, n: int) -> Tensor:
    """Draw (N, 3, 1, 1) random colors; weakly saturated ones are more frequent, as in workshops."""
    hue, saturation = c.uniform(n), 0.9 * c.uniform(n) ** 1.6
    value = c.uniform(n, 0.1, 0.97)
    sector = (torch.tensor([5.0, 3.0, 1.0], device=c.device) + hue * 6) % 6
    dip = torch.minimum(torch.minimum(sector, 4 - sector), torch.ones_like(sector)).clamp_min(0)
    return (value - value * saturation * dip).view(n, 3, 1, 1)


def grey_of(picture: Tensor) -> Tensor:
    """Return the mean over the channels, kept as a dimension."""
    return picture.mean(1, keepdim=True)


def _tones(c: Canvas, n: int, textures: Mapping[str, Texture], plain: float) -> tuple[Tensor, list[str]]:
    """Draw (N, S, S) tone fields of random textures; return them and their names."""
    kinds = list(textures.values())
    index = c.weighted(n, [kind.weight for kind in kinds])
    if "plain" in textures:
        index[c.some(n, plain)] = list(textures).index("plain")
    tone = torch.zeros(n, c.size, c.size, device=c.device)
    nouns = [""] * n
    for number, kind in enumerate(kinds):
        rows = (index == number).nonzero().flatten()
        if len(rows):
            drawn = kind.tone(c, len(rows))
            tone[rows] = drawn if kind.tone is _plain else standardise(drawn)
            for row in rows.tolist():
                nouns[row] = c.pick(kind.nouns)
    return tone, nouns


_OVERLAID, _MIXED, _FADING = 0.15, 0.25, 0.25
"""Shares of surfaces with a second texture over the first, with noise, and with texture that slowly comes and goes."""


def _vary(c: Canvas, tone: Tensor) -> None:
    """Make some of the tone fields (N, S, S) less pure, in place."""
    n = len(tone)
    if m := len(rows := c.some(n, _OVERLAID)):
        second, _ = _tones(c, m, TRAINING_TEXTURES, 0.0)
        tone[rows] += c.uniform(m, 0.1, 0.8) * second
    if m := len(rows := c.some(n, _MIXED)):
        tone[rows] += c.uniform(m, 0.1, 0.7) * c.noise(m, c.uniform(m, 0.8, 2.5))
    if m := len(rows := c.some(n, _FADING)):
        slow = c.noise(m, c.uniform(m, 2.2, 3.5), anisotropy=c.log_uniform(m, 0.2, 1))
        tone[rows] *= torch.exp(c.uniform(m, 0.1, 0.8) * slow.clamp(-2, 2))


def draw_surfaces(
    c: Canvas, n: int, textures: Mapping[str, Texture], plain: float
) -> tuple[Tensor, list[str]]:
    """Draw lit, colored surfaces; return them and their names.

    ``plain`` is the extra share of plain surfaces (objects are plainer than cloth). Returns (N, 3, S, S) in [0, 1] and
    N nouns.
    """
    tone, nouns = _tones(c, n, textures, plain)
    _vary(c, tone)
    base, other = colour(c, n), colour(c, n)
    towards_tone = c.chance(n, 0.6)[:, None] > 0
    sign = (2 * c.chance(n, 0.5) - 1)[:, None]
    axis = torch.where(towards_tone, sign * grey_of(base).clamp_min(0.2).expand(-1, 3, -1, -1), other - base)
    is_grey = c.chance(n, 0.4)[:, None] > 0
    base = torch.where(is_grey, grey_of(base).expand_as(base), base)
    axis = torch.where(is_grey, grey_of(axis).expand_as(axis), axis)
    surface = base + c.log_uniform(n, 0.02, 0.45)[:, None] * axis * tone[:, None] / 2
    lit = c.chance(n, 0.4) * c.uniform(n, 0, 0.5) * relief(tone, c.angle(n))
    streaks = c.chance(n, 0.2) * c.uniform(n, 0.015, 0.15)
    rows = streaks.flatten().nonzero().flatten()
    shade = 1 + lit
    if len(rows):
        m = len(rows)
        field = c.noise(m, c.uniform(m, 0.3, 1.2), anisotropy=1 / c.uniform(m, 8, 80))
        shade[rows] = shade[rows] + streaks[rows] * field
    return (surface * shade[:, None]).clamp(0, 1), nouns
