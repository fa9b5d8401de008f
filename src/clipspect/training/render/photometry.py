"""Camera model: vignette, focus, sharpening, exposure and contrast, equal for both images; then noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.render.fields import Canvas


def _blur(picture: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2.0, 1.0], device=picture.device)
    kernel = (weights[:, None] * weights / 16).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(picture, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)


def develop(
    c: Canvas, clean: Tensor, defective: Tensor, camera: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Take both pictures (N, 3, S, S) with one camera and light, without noise.

    ``camera=False`` leaves the pictures as they are.

    Returns both pictures and the sensor's noise level (N, 1, 1) for ``add_noise``.
    """
    n = len(clean)
    level = c.log_uniform(n, 0.002, 0.05)
    if not camera:
        return clean.clamp(0, 1), defective.clamp(0, 1), level

    def both(value: Tensor) -> Tensor:
        return torch.cat([value, value])

    centre_x, centre_y = c.uniform(n, -0.5, 0.5), c.uniform(n, -0.5, 0.5)
    vignette = (
        1 - c.chance(n, 0.35) * c.uniform(n, 0, 0.5) * ((c.x - centre_x) ** 2 + (c.y - centre_y) ** 2) / 2
    )
    picture = torch.cat([clean, defective]) * both(vignette)[:, None]

    soft = both(c.chance(n, 0.4) * c.uniform(n) ** 1.5)[:, None]
    once = _blur(picture)
    wide = both(c.chance(n, 0.3))[:, None]
    picture = picture + soft * (wide * _blur(once) + (1 - wide) * once - picture)
    crisp = both(c.chance(n, 0.35) * c.uniform(n, 0, 1.6))[:, None]
    picture = picture + crisp * (picture - _blur(picture))

    picture = picture.clamp(1e-4, 1) ** both(torch.exp(0.2 * c.normal(n)))[:, None]
    mean = both(picture[:n].mean((1, 2, 3), keepdim=True))
    picture = (picture - mean) * both(c.uniform(n, 0.6, 1.3))[:, None] + mean
    picture = (picture + both(c.uniform(n, -0.1, 0.1))[:, None]).clamp(0, 1)
    return picture[:n], picture[n:], level


def add_noise(c: Canvas, picture: Tensor, level: Tensor) -> Tensor:
    """Add sensor noise of a level (N, 1, 1), gray in most cameras; result in [0, 1]."""
    n = len(picture)
    grain = c.normal(n, 3, c.size, c.size)
    grey = c.chance(n, 0.6)[:, None]
    grain = grey * grain[:, :1] + (1 - grey) * grain
    return (picture + level[:, None] * grain).clamp(0, 1)
