"""Parts drawn by signed distance: outline, bevel, highlight and shadow over a background."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipspect.training.render.fields import Canvas, slope, smoothstep, soften


@dataclass(frozen=True)
class Shape:
    """A kind of part: a distance field below 0 inside, over coordinates in which it spans about [-1, 1]."""

    distance: Callable[[Canvas, Tensor, Tensor], Tensor]
    nouns: tuple[str, ...]


def box(
    x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float, corner: Tensor | float
) -> Tensor:
    """Signed distance to a rounded box of half sizes ``width``, ``height``."""
    over_x, over_y = x.abs() - width + corner, y.abs() - height + corner
    outer = (over_x.clamp_min(0).square() + over_y.clamp_min(0).square()).sqrt()
    return outer + torch.maximum(over_x, over_y).clamp_max(0) - corner


def _radius(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def _disc(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    return _radius(x, y) - 1


def _ring(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    radius = _radius(x, y)
    return torch.maximum(radius - 1, c.uniform(len(x), 0.15, 0.75) - radius)


def _plate(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    return box(x, y, 1.0, c.uniform(n, 0.5, 1), c.uniform(n, 0.02, 0.25))


def _capsule(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    half = c.uniform(len(x), 0.15, 0.6)
    return box(x, y, 1.0, half, half * 0.999)


def _gear(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n, radius, teeth = len(x), _radius(x, y), c.integers(len(x), 6, 16).view(-1, 1, 1)
    rim = radius - 0.88 - 0.12 * torch.tanh(4 * torch.sin(torch.atan2(y, x) * teeth))
    return torch.maximum(rim, c.uniform(n, 0.1, 0.4) - radius)


def _star(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    points = c.integers(len(x), 3, 8).view(-1, 1, 1)
    return (_radius(x, y) - 0.72 - 0.28 * torch.cos(torch.atan2(y, x) * points)) * 0.7


def _nut(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    radius = _radius(x, y)
    sixth = torch.atan2(y, x) % (math.pi / 3) - math.pi / 6
    return torch.maximum(radius * sixth.cos() - 0.87, c.uniform(len(x), 0.2, 0.6) - radius)


def _frame(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    height, rim = c.uniform(n, 0.5, 1), c.uniform(n, 0.08, 0.3)
    return torch.maximum(box(x, y, 1.0, height, 0.08), -box(x, y, 1 - rim, height - rim, 0.04))


def _bottle(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    corner = c.uniform(len(x), 0.02, 0.2)
    return torch.minimum(box(x, y - 0.25, 0.5, 0.7, corner), box(x, y + 0.7, 0.2, 0.3, 0.05))


def _cross(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    arm = c.uniform(len(x), 0.12, 0.4)
    return torch.minimum(box(x, y, 1.0, arm, 0.05), box(x, y, arm, 1.0, 0.05))


def _perforated_plate(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    height, pitch = c.uniform(n, 0.6, 1), 2 / c.integers(n, 3, 7).view(-1, 1, 1)
    cell_x, cell_y = (x % pitch) - pitch / 2, (y % pitch) - pitch / 2
    holes = pitch * c.uniform(n, 0.15, 0.38) - _radius(cell_x, cell_y)
    return torch.maximum(box(x, y, 1.0, height, 0.05), holes)


def _screw(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    head = box(x + 0.8, y, 0.2, c.uniform(n, 0.3, 0.45), 0.06)
    thread = 0.03 * torch.tanh(3 * torch.sin(x * c.uniform(n, 30, 60)))
    return torch.minimum(head, box(x - 0.1, y, 0.9, 0.16 + thread, 0.04))


def _circuit(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    """Tracks along and across a lattice, with pads where they end and holes in some of the pads."""
    n = len(x)
    pitch, half = c.uniform(n, 0.14, 0.3), c.uniform(n, 0.02, 0.055)
    pad, bore = half * c.uniform(n, 1.2, 2.4), half * c.chance(n, 0.5) * c.uniform(n, 0.4, 1)
    metal, holes = torch.full_like(x, 9.0), torch.full_like(x, 9.0)
    for _track in range(12):
        from_x, from_y = ((c.uniform(n, -1, 1) / pitch).round() * pitch for _axis in range(2))
        along_x = c.chance(n, 0.5)
        reach = (c.uniform(n, 0.2, 1.6) / pitch).round() * pitch
        half_x, half_y = along_x * reach / 2, (1 - along_x) * reach / 2
        track = box(x - from_x - half_x, y - from_y - half_y, half_x + half, half_y + half, half * 0.9)
        metal = torch.minimum(metal, track)
        for end in (0.0, 1.0):
            to_end = _radius(x - from_x - 2 * half_x * end, y - from_y - 2 * half_y * end)
            metal, holes = torch.minimum(metal, to_end - pad), torch.minimum(holes, to_end)
    return torch.maximum(metal, bore - holes)


def _flange(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    bolts, bore = c.integers(n, 4, 9).view(-1, 1, 1), c.uniform(n, 0.25, 0.42)
    radius = _radius(x, y)
    sector = 2 * math.pi / bolts
    turn = torch.atan2(y, x) % sector - sector / 2
    to_bolt = _radius(radius * turn.cos() - 0.74, radius * turn.sin())
    return torch.maximum(torch.maximum(radius - 1, bore - radius), 0.11 - to_bolt)


def bracket_distance(x: Tensor, y: Tensor, arm: Tensor | float, corner: float, bolt: float) -> Tensor:
    """An angle bracket: signed distance with arms of half width ``arm`` and a hole ``bolt`` from each end's middle."""
    angle = torch.minimum(box(x + 1 - arm, y, arm, 1.0, corner), box(x, y - 1 + arm, 1.0, arm, corner))
    holes = torch.minimum(_radius(x + 1 - arm, y + bolt), _radius(x - bolt, y - 1 + arm))
    return torch.maximum(angle, 0.13 - holes)


def _bracket(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    return bracket_distance(x, y, c.uniform(len(x), 0.25, 0.4), 0.08, 0.6)


def _hinge(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    leaves = box(x.abs() - 0.55, y, 0.45, c.uniform(n, 0.6, 0.9), 0.12)
    knuckle = box(x, y, 0.1, 0.95, 0.03)
    holes = _radius(x.abs() - 0.62, y.abs() - 0.4)
    return torch.maximum(torch.minimum(leaves, knuckle), 0.09 - holes)


TRAINING_SHAPES: Mapping[str, Shape] = {
    "disc": Shape(_disc, ("disc", "lid", "cap", "coin")),
    "ring": Shape(_ring, ("ring", "washer", "gasket", "seal")),
    "plate": Shape(_plate, ("plate", "chip", "card", "panel")),
    "capsule": Shape(_capsule, ("capsule", "pill", "pin")),
    "gear": Shape(_gear, ("gear", "cog", "sprocket")),
    "star": Shape(_star, ("star", "knob")),
    "nut": Shape(_nut, ("nut", "metal nut")),
    "frame": Shape(_frame, ("frame", "bezel")),
    "bottle": Shape(_bottle, ("bottle", "vial")),
    "cross": Shape(_cross, ("cross", "connector")),
    "perforated plate": Shape(_perforated_plate, ("perforated plate", "grille", "strainer")),
    "screw": Shape(_screw, ("screw", "bolt")),
    "circuit": Shape(_circuit, ("circuit board", "printed circuit", "wiring", "stencil")),
}
HELD_OUT_SHAPES: Mapping[str, Shape] = {
    "flange": Shape(_flange, ("flange",)),
    "bracket": Shape(_bracket, ("bracket",)),
    "hinge": Shape(_hinge, ("hinge",)),
}
GENERAL_NOUNS = ("object", "part", "component", "product")


@dataclass(frozen=True)
class Pose:
    """Where the parts lie: rows of copies, centre, scale, turn; each (N, 1, 1)."""

    copies: Tensor
    scale: Tensor
    shift_x: Tensor
    shift_y: Tensor
    turn: Tensor


def draw_pose(c: Canvas, n: int) -> Pose:
    """One part (mostly), or 2×2 or 3×3 copies."""
    copies = 1 + c.weighted(n, [0.6, 0.24, 0.16]).view(n, 1, 1).float()
    single = (copies == 1).float()
    scale = c.uniform(n, 0.45, 1.1) * (single + (1 - single) * 0.75)
    return Pose(
        copies, scale, single * c.uniform(n, -0.25, 0.25), single * c.uniform(n, -0.25, 0.25), c.angle(n)
    )


def draw_parts(
    c: Canvas,
    material: Tensor,
    background: Tensor,
    pose: Pose,
    shapes: Mapping[str, Shape],
    nouns: Sequence[str],
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Parts of a material (N, 3, S, S) over a background (N, 3, S, S).

    Returns the picture, the part's soft membership (N, S, S), the background with the part's shadow, and N
    nouns (the shape's, the material and the shape's, or a general one).
    """
    n = len(material)
    centred = (pose.copies + 1) % 2
    x = (c.x * pose.copies + centred + 1) % 2 - 1 if n else c.x.expand(0, -1, -1)
    y = (c.y * pose.copies + centred + 1) % 2 - 1 if n else c.y.expand(0, -1, -1)
    x, y = x - pose.shift_x, y - pose.shift_y
    x, y = (
        (x * pose.turn.cos() + y * pose.turn.sin()) / pose.scale,
        (y * pose.turn.cos() - x * pose.turn.sin()) / pose.scale,
    )
    names = list(shapes)
    index = c.integers(n, 0, len(names))
    distance = torch.zeros(n, c.size, c.size, device=c.device)
    called = [""] * n
    for number, name in enumerate(names):
        rows = (index == number).nonzero().flatten()
        if not len(rows):
            continue
        distance[rows] = shapes[name].distance(c, x[rows], y[rows])
        for row in rows.tolist():
            noun = c.pick(shapes[name].nouns)
            way = float(c.uniform(1))
            called[row] = (
                noun if way < 0.6 else f"{nouns[row]} {noun}" if way < 0.85 else c.pick(GENERAL_NOUNS)
            )
    per_pixel = c.pixel * pose.copies / pose.scale
    part = torch.sigmoid(-distance / per_pixel * 2.2)
    bevel, light = c.uniform(n, 0.03, 0.8), c.angle(n)
    dome = smoothstep(-distance / bevel).clamp_min(1e-6).sqrt()
    shade = (slope(dome, light) / per_pixel * bevel / 4).clamp(-1, 1) * c.uniform(n, 0, 0.7)
    glint = torch.exp(
        -((x - 0.35 * light.cos()) ** 2 + (y - 0.35 * light.sin()) ** 2) / c.uniform(n, 0.01, 0.2)
    )
    glint = glint * c.chance(n, 0.4) * c.uniform(n, 0, 0.5)
    body = material * (1 + shade[:, None]) + glint[:, None]
    reach = max(1, c.size // 32)
    shadow = soften(part, reach)
    shadow = torch.roll(
        shadow, (int(c.integers(1, 0, reach + 1)), int(c.integers(1, -reach, reach + 1))), (1, 2)
    )
    under = background * (1 - shadow * c.uniform(n, 0, 0.5))[:, None]
    picture = body * part[:, None] + under * (1 - part[:, None])
    return picture.clamp(0, 1), part, under, called
