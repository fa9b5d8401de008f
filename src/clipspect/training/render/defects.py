"""Small and local defects: each function returns the changed image and the soft region of the defect."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.render.fields import Canvas, inside, outline, relief, smoothstep, soften
from clipspect.training.render.structure import Ground, blend, ink

Changed = tuple[Tensor, Tensor]
"""Image with the defect (N, 3, S, S) and its region (N, S, S) in [0, 1]."""


def on_part(c: Canvas, g: Ground) -> Tensor:
    """Return a point (N, 2) on the part."""
    return c.place((g.part > 0.5).float())


def scratch(c: Canvas, g: Ground) -> Changed:
    """Draw a nearly straight thin line, sometimes with a raised lip."""
    n = len(g.picture)
    path = c.path(on_part(c, g), 8, c.log_uniform(n, 0.15, 1.6), c.uniform(n, 0, 0.12))
    width = c.log_uniform(n, 0.15, 1.6)[:, 0] * c.pixel * (0.6 + 0.6 * c.normal(n, 7).abs().clamp_max(1))
    distance, side = c.path_distance(path, width)
    line = torch.sigmoid(-distance / (0.45 * c.pixel)) * g.part
    lip = c.chance(n, 0.35) * c.uniform(n, 0.1, 0.5)
    wide = torch.sigmoid((1.2 * c.pixel - distance) / (0.5 * c.pixel)) * g.part
    picture = blend(g.picture, ink(c, g.picture, line, 0.45, 0.4), line, c.uniform(n, 0.3, 1))
    return picture * (1 + lip * wide * side)[:, None], torch.maximum(line, wide * (lip > 0))


def crack(c: Canvas, g: Ground) -> Changed:
    """Draw a jagged, branching, tapering line."""
    n, points = len(g.picture), 20
    length = c.log_uniform(n, 0.2, 2.2)
    path = c.path(on_part(c, g), points, length, c.uniform(n, 0.3, 0.8))
    taper = torch.linspace(1, 0.3, points - 1, device=c.device)
    width = (
        c.uniform(n, 0.1, 2.2)[:, 0] * c.pixel * (0.3 + c.normal(n, points - 1).abs().clamp_max(1)) * taper
    )
    distance, _ = c.path_distance(path, width)
    for _branch in range(2):
        root = path[torch.arange(n, device=c.device), c.integers(n, 2, points - 2)]
        twig = c.path(root, 9, length * c.uniform(n, 0.2, 0.6), c.uniform(n, 0.3, 0.7))
        branch, _ = c.path_distance(twig - twig[:, :1] + root[:, None], 0.7 * width[:, :8])
        distance = torch.minimum(distance, branch + 9 * c.chance(n, 0.4))
    rough = 0.3 * c.pixel * c.noise(n, c.uniform(n, 0.5, 1))
    line = torch.sigmoid(-(distance + rough) / (0.45 * c.pixel)) * g.part
    return blend(g.picture, ink(c, g.picture, line, 0.8, 0.15), line, c.uniform(n, 0.35, 1)), line


def hole(c: Canvas, g: Ground) -> Changed:
    """Draw a dark pore or blowhole, sometimes with a lit rim."""
    n, centre = len(g.picture), on_part(c, g)
    distance = c.blob(centre, c.log_uniform(n, 0.025, 0.3), c.uniform(n, 0, 0.3))
    core = inside(distance, c.uniform(n, 0.04, 0.4)) * g.part
    light = c.angle(n)
    towards = (c.x - centre[:, 0, None, None]) * light.cos() + (c.y - centre[:, 1, None, None]) * light.sin()
    rim = (
        torch.exp(-(((distance - 1.1) / 0.25) ** 2))
        * towards.sign()
        * c.chance(n, 0.5)
        * c.uniform(n, 0, 0.5)
    )
    lit = g.picture * (1 + rim * g.part)[:, None]
    return (
        blend(lit, ink(c, g.picture, core, 0.9, 0.05), core, c.uniform(n, 0.4, 1)),
        inside(distance / 1.2, 0.1) * g.part,
    )


def pits(c: Canvas, g: Ground) -> Changed:
    """Draw a cluster of small pores."""
    n, centre = len(g.picture), on_part(c, g)
    spread, region = c.log_uniform(n, 0.05, 0.5)[:, 0], torch.zeros_like(g.part)
    for _pit in range(int(c.integers(1, 2, 7))):
        where = centre + spread * c.normal(n, 2)
        distance = c.blob(where, c.log_uniform(n, 0.02, 0.07), c.uniform(n, 0, 0.3))
        region = torch.maximum(region, inside(distance, c.uniform(n, 0.1, 0.4)))
    region = region * g.part
    return blend(g.picture, ink(c, g.picture, region, 0.75, 0.15), region, c.uniform(n, 0.4, 1)), region


def dent(c: Canvas, g: Ground) -> Changed:
    """Draw a hollow or bump, visible only by shading."""
    n = len(g.picture)
    distance = c.blob(on_part(c, g), c.log_uniform(n, 0.07, 0.45), c.uniform(n, 0, 0.2))
    shade = relief(torch.exp(-1.5 * distance.clamp_min(0) ** 2), c.angle(n))
    shade = shade / shade.abs().amax((1, 2), keepdim=True).clamp_min(1e-4) * g.part
    return g.picture * (1 + c.uniform(n, 0.15, 0.8) * shade)[:, None], inside(distance / 1.35, 0.1) * g.part


def stain(c: Canvas, g: Ground) -> Changed:
    """Draw a spot of dirt or liquid, translucent or tinted, sometimes with a drying edge."""
    n, centre, size = len(g.picture), on_part(c, g), c.log_uniform(len(g.picture), 0.07, 0.6)
    distance = c.blob(centre, size, c.uniform(n, 0.3, 1.1))
    region = (
        inside(distance, c.uniform(n, 0.05, 0.8)) * smoothstep(1.6 - 0.6 * c.blob(centre, size, 0.0)) * g.part
    )
    edge = 1 + c.chance(n, 0.3) * 0.6 * torch.exp(-(((distance - 1) / 0.2) ** 2))
    tint = ink(c, g.picture, region, 0.6, 0.2)
    veil = c.chance(n, 0.5)[:, None]
    over = veil * g.picture * (1.2 * tint).clamp(0, 1) + (1 - veil) * tint
    return blend(g.picture, over, (region * edge).clamp(0, 1), c.uniform(n, 0.15, 0.95)), region


def fibre(c: Canvas, g: Ground) -> Changed:
    """Draw a hair or thread on the part, with its shadow."""
    n = len(g.picture)
    path = c.path(on_part(c, g), 16, c.log_uniform(n, 0.35, 2), c.uniform(n, 0.1, 0.5))
    width = (c.uniform(n, 0.5, 2.2) * c.pixel)[:, 0].expand(n, 15)
    distance, side = c.path_distance(path, width)
    line = torch.sigmoid(-distance / (0.4 * c.pixel))
    shadow = 1 - 0.35 * c.uniform(n) * line.roll((2, 1), (1, 2))
    body = ink(c, g.picture, line, 0.4, 0.3) * (1 + c.uniform(n, 0, 0.4) * side * line)[:, None]
    return blend(g.picture * shadow[:, None], body, line, c.uniform(n, 0.6, 1)), line


def foreign_patch(c: Canvas, g: Ground) -> Changed:
    """Draw foreign material: a piece of another scene, or of this one rotated by a quarter turn."""
    n, centre, size = len(g.picture), on_part(c, g), c.log_uniform(len(g.picture), 0.07, 0.45)
    distance = c.blob(centre, size, c.uniform(n, 0, 0.7))
    across = (c.x - centre[:, 0, None, None]).abs() / size
    down = (c.y - centre[:, 1, None, None]).abs() / (size * c.uniform(n, 0.3, 1))
    distance = torch.where(c.uniform(n) < 0.25, torch.maximum(across, down), distance)
    region = inside(distance, c.uniform(n, 0.02, 0.2)) * g.part
    turned = torch.rot90(g.picture.roll((c.size // 3, c.size // 5), (2, 3)), 1, (2, 3))
    over = torch.where(c.uniform(n)[:, None] < 0.5, g.picture.roll(1, 0), turned)
    return blend(g.picture, over, region, c.uniform(n, 0.5, 1)), region


def distortion(c: Canvas, g: Ground) -> Changed:
    """Bend or twist the structure."""
    n, centre = len(g.picture), on_part(c, g)
    distance = c.blob(centre, c.log_uniform(n, 0.15, 0.6), c.uniform(n, 0, 0.2))
    fade = torch.exp(-1.5 * distance.clamp_min(0) ** 2)
    x, y = c.x - centre[:, 0, None, None], c.y - centre[:, 1, None, None]
    twist = c.uniform(n, 0.6, 3) * (2 * c.chance(n, 0.5) - 1) * fade
    swirl = c.chance(n, 0.5)
    wave_x, wave_y = (0.1 * fade * c.noise(n, c.uniform(n, 1.5, 2.5)) for _axis in range(2))
    dx = swirl * (x * twist.cos() - y * twist.sin() - x) + (1 - swirl) * wave_x
    dy = swirl * (x * twist.sin() + y * twist.cos() - y) + (1 - swirl) * wave_y
    grid = torch.stack([c.x + dx, c.y + dy], -1).clamp(-1, 1)
    bent = F.grid_sample(g.picture, grid, padding_mode="reflection", align_corners=False)
    return bent, inside(distance / 1.15, 0.1)


def broken_edge(c: Canvas, g: Ground) -> Changed:
    """Remove a piece of the part's rim: the background shows, or a rough fracture."""
    n = len(g.picture)
    rim = outline(g.part)
    distance = c.blob(c.place(rim + 1e-4 * g.part), c.log_uniform(n, 0.08, 0.6), c.uniform(n, 0, 0.5))
    region = inside(distance, c.uniform(n, 0.02, 0.1)) * g.part
    has_rim = (rim.flatten(1).sum(1) > 4).float().view(n, 1, 1)
    fracture = ink(c, g.picture, region, 0.5, 0.4)
    fracture = fracture * (1 + c.uniform(n, 0.05, 0.35) * c.noise(n, c.uniform(n, 0.4, 1.6)))[:, None]
    rough = torch.maximum(c.chance(n, 0.4), 1 - has_rim)[:, None]
    return blend(
        g.picture, rough * fracture + (1 - rough) * g.background, region, c.uniform(n, 0.8, 1)
    ), region


def burr(c: Canvas, g: Ground) -> Changed:
    """Add excess material: beyond the part's rim, or as a lump on a surface without one."""
    n = len(g.picture)
    rim = outline(g.part)
    has_rim = (rim.flatten(1).sum(1) > 4).float().view(n, 1, 1)
    distance = c.blob(c.place(rim + 1e-4 * g.part), c.log_uniform(n, 0.04, 0.3), c.uniform(n, 0.1, 0.7))
    region = inside(distance, c.uniform(n, 0.02, 0.15)) * (1 - has_rim * g.part)
    weight = g.part[:, None]
    own = (g.picture * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1)
    lump = ink(c, g.picture, region, 0.3, 0.5)
    matter = torch.where(has_rim[:, None] > 0, own.expand_as(g.picture), lump.expand_as(g.picture))
    matter = matter * (1 + c.uniform(n, 0.02, 0.2) * c.noise(n, c.uniform(n, 0.4, 2)))[:, None]
    lit = 1 + c.uniform(n, 0, 0.4) * relief(soften(region, 1), c.angle(n)) * region
    return blend(g.picture, (matter * lit[:, None]).clamp(0, 1), region, c.uniform(n, 0.7, 1)), region


def flaking(c: Canvas, g: Ground) -> Changed:
    """Draw a flaked layer: a sharp, angular patch of the material below, with a lit step."""
    n = len(g.picture)
    distance = c.blob(on_part(c, g), c.log_uniform(n, 0.08, 0.45), c.uniform(n, 0.3, 0.9))
    corners = 0.25 * torch.sign(c.noise(n, c.uniform(n, 1.2, 1.8)))
    region = inside(distance + corners, 0.05) * g.part
    below = soften(g.picture, 3) * torch.exp(0.35 * c.normal(n, 3, 1, 1))
    step = relief(soften(region, 1), c.angle(n))
    picture = blend(g.picture, below.clamp(0, 1), region, c.uniform(n, 0.5, 1))
    return picture * (1 + c.uniform(n, 0.1, 0.5) * step)[:, None], torch.maximum(
        region, (step.abs() > 0.1).float()
    )
