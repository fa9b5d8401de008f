"""Pixel grid, seeded draws, spectral noise and distances that the rest of the renderer uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Canvas:
    """Square pixel grid with the random generator: the same seed gives the same pixels.

    Per-scene numbers are drawn as (N, 1, 1) so that they broadcast over (N, S, S) fields. Coordinates run over [-1, 1],
    so that ``pixel`` = 2 / S is the width of one pixel.
    """

    def __init__(self, size: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.pixel = 2.0 / size
        line = (torch.arange(size, device=self.device) + 0.5) / size * 2 - 1
        self.y, self.x = torch.meshgrid(line, line, indexing="ij")  # (S, S)
        rows = torch.fft.fftfreq(size, device=self.device) * size
        columns = torch.fft.rfftfreq(size, device=self.device) * size
        self._frequency_y, self._frequency_x = torch.meshgrid(rows, columns, indexing="ij")

    # --- draws -----------------------------------------------------------------------------------
    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw (N, 1, 1) uniform in [low, high)."""
        return low + (high - low) * torch.rand(n, 1, 1, generator=self.generator, device=self.device)

    def log_uniform(self, n: int, low: float, high: float) -> Tensor:
        """Draw (N, 1, 1), uniform in the logarithm: sizes and frequencies."""
        return self.uniform(n, math.log(low), math.log(high)).exp()

    def normal(self, n: int, *shape: int) -> Tensor:
        """Draw (N, *shape) standard normal; (N, 1, 1) if no shape is given."""
        return torch.randn(n, *(shape or (1, 1)), generator=self.generator, device=self.device)

    def chance(self, n: int, probability: float) -> Tensor:
        """Draw (N, 1, 1) zeros and ones, one with the given probability."""
        return (self.uniform(n) < probability).float()

    def some(self, n: int, probability: float) -> Tensor:
        """Draw (K,) indices of scenes, each with the given probability."""
        return self.chance(n, probability).flatten().nonzero().flatten()

    def angle(self, n: int) -> Tensor:
        """Draw (N, 1, 1) in [0, 2π)."""
        return self.uniform(n, 0.0, 2 * math.pi)

    def integers(self, n: int, low: int, high: int) -> Tensor:
        """Draw (N,) integers in [low, high)."""
        return torch.randint(low, high, (n,), generator=self.generator, device=self.device)

    def weighted(self, n: int, weights: Sequence[float]) -> Tensor:
        """Draw (N,) indices with the given weights."""
        table = torch.tensor(weights, device=self.device)
        return torch.multinomial(table, n, replacement=True, generator=self.generator)

    def pick(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[int(self.integers(1, 0, len(options)))]

    # --- fields ----------------------------------------------------------------------------------
    def noise(
        self,
        n: int,
        power: Tensor | float,
        anisotropy: Tensor | float = 1.0,
        angle: Tensor | None = None,
        band: Tensor | None = None,
    ) -> Tensor:
        """(N, S, S) Gaussian random field of zero mean and unit deviation.

        Amplitude falls as frequency^-power, or, with ``band``, lies around that many cycles per picture. An
        anisotropy below 1 stretches the field along ``angle``.
        """
        turn = self.uniform(n, 0.0, math.pi) if angle is None else angle
        along = (self._frequency_x * turn.cos() + self._frequency_y * turn.sin()) * (1.0 / anisotropy)
        across = self._frequency_y * turn.cos() - self._frequency_x * turn.sin()
        radius = (along.square() + across.square()).sqrt()
        if band is None:
            amplitude = (radius + 0.5) ** -power
        else:
            off_band = (radius - band) / (0.3 * band)
            amplitude = torch.exp(-(off_band**2))
        amplitude[:, 0, 0] = 0
        waves = torch.randn(n, *radius.shape[1:], 2, generator=self.generator, device=self.device)
        field = torch.fft.irfft2(torch.view_as_complex(waves) * amplitude, s=(self.size, self.size))
        return standardise(field)

    def turned(self, n: int, angle: Tensor, warp: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return coordinates rotated by an angle and slightly warped: two (N, S, S)."""
        x = self.x * angle.cos() + self.y * angle.sin()
        y = self.y * angle.cos() - self.x * angle.sin()
        if warp:
            amount = warp * self.uniform(n) ** 2
            x = x + amount * self.noise(n, self.uniform(n, 1.8, 3.0))
            y = y + amount * self.noise(n, self.uniform(n, 1.8, 3.0))
        return x, y

    def blob(self, centre: Tensor, radius: Tensor, roughness: Tensor | float) -> Tensor:
        """Return the (N, S, S) distance from a random ellipse in units of its radius: below 1 inside; rough outline."""
        n = len(centre)
        turn, aspect = self.angle(n), self.uniform(n, 0.4, 1.0)
        x = self.x - centre[:, 0, None, None]
        y = self.y - centre[:, 1, None, None]
        x, y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
        distance = ((x / radius) ** 2 + (y / (radius * aspect)) ** 2).sqrt()
        return distance + 0.6 * roughness * self.noise(n, self.uniform(n, 1.1, 2.2))

    def place(self, weight: Tensor) -> Tensor:
        """Draw (N, 2) points (x, y) in proportion to a weight field (N, S, S)."""
        flat = weight.flatten(1) + 1e-8
        index = torch.multinomial(flat, 1, generator=self.generator)[:, 0]
        return torch.stack([self.x.flatten()[index], self.y.flatten()[index]], 1)

    def path(self, start: Tensor, points: int, length: Tensor, wander: Tensor) -> Tensor:
        """Draw a random walk (N, points, 2) from ``start`` (N, 2); wander is the turn per step in radians."""
        n = len(start)
        turns = self.normal(n, points - 1) * wander[:, 0]
        heading = self.angle(n)[:, 0] + turns.cumsum(1)
        step = (
            length[:, 0]
            / (points - 1)
            * (0.5 + torch.rand(heading.shape, generator=self.generator, device=self.device))
        )
        steps = torch.stack([heading.cos() * step, heading.sin() * step], -1)
        line = F.pad(steps.cumsum(1), (0, 0, 1, 0))
        return line - line[:, points // 2 : points // 2 + 1] + start[:, None]

    def path_distance(self, path: Tensor, half_width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance to a polyline (N, K, 2) minus its half width (N, K-1), and the side: two (N, S, S)."""
        n = len(path)
        grid = torch.stack([self.x, self.y], -1).view(1, 1, -1, 2)
        begin, end = path[:, :-1, None], path[:, 1:, None]
        along = end - begin
        from_begin = grid - begin
        share = ((from_begin * along).sum(-1) / along.square().sum(-1).clamp_min(1e-8)).clamp(0, 1)
        offset = from_begin - share[..., None] * along
        distance, nearest = (offset.square().sum(-1).sqrt() - half_width[..., None]).min(1)
        cross = along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]
        side = cross.sign().gather(1, nearest[:, None])[:, 0]
        return distance.view(n, self.size, self.size), side.view(n, self.size, self.size)


def standardise(field: Tensor) -> Tensor:
    """Return the field (N, S, S) with zero mean and unit deviation."""
    field = field - field.mean((-1, -2), keepdim=True)
    return field / field.std((-1, -2), keepdim=True).clamp_min(1e-6)


def smoothstep(x: Tensor) -> Tensor:
    """Return 0 below 0, 1 above 1, smooth in between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def inside(distance: Tensor, softness: Tensor | float) -> Tensor:
    """Return the soft membership in [0, 1] of a blob whose distance is below 1 inside."""
    return torch.sigmoid((1 - distance) * (3 / softness))


def slope(height: Tensor, angle: Tensor) -> Tensor:
    """Return the (N, S, S) rise of a height field per pixel towards the light at ``angle``."""
    dx = F.pad(height[:, :, 1:] - height[:, :, :-1], (0, 1))
    dy = F.pad(height[:, 1:] - height[:, :-1], (0, 0, 0, 1))
    return dx * angle.cos() + dy * angle.sin()


def relief(height: Tensor, angle: Tensor) -> Tensor:
    """Return the shading of a height field lit from ``angle``: about ±1, at most 1 in size."""
    lit = slope(height, angle)
    return (lit / lit.std((-1, -2), keepdim=True).clamp_min(0.02)).clamp(-2.5, 2.5) * 0.4


def grow(field: Tensor, pixels: int) -> Tensor:
    """Return the (N, S, S) maximum over a square of 2·pixels + 1."""
    return F.max_pool2d(field[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def soften(field: Tensor, pixels: int) -> Tensor:
    """Return the mean over a square of 2·pixels + 1; (N, S, S) or (N, C, S, S)."""
    if field.dim() == 3:
        return soften(field[:, None], pixels)[:, 0]
    return F.avg_pool2d(field, 2 * pixels + 1, 1, pixels, count_include_pad=False)


def outline(part: Tensor) -> Tensor:
    """Return the (N, S, S) inner rim, about two pixels wide, of a soft membership."""
    return (grow(part, 2) - (1 - grow(1 - part, 2))).clamp(0, 1) * (part > 0.5)
