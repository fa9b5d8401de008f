"""Fusion rules that bring a text map and a visual map to one scale before averaging (docs/methods.md §5).

Text scores are probabilities around ½ and visual scores are distances near 0. Each rule is fitted once to a pool of the
set's maps and then changes every value independently, so an image's map does not depend on its batch. All rules give
values in [0, 1], and finite ones for constant maps. docs/ablations.md compares them.

"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["mean", "min-max", "rank", "z-score", "temperature"]
RULES: tuple[Rule, ...] = ("mean", "min-max", "rank", "z-score", "temperature")

Scale = Callable[[Tensor], Tensor]
"""Monotone map of each value into [0, 1]."""

_QUANTILES = 1024
_ROUNDING = 1e-5
"""Range of a pool whose values agree but for the rounding of float32; it is treated as constant on every machine."""
_BEND = 30.0  # robust deviations at which a z-score reaches ¾; nearly linear below


@dataclass(frozen=True)
class Fusion:
    """One scale for language scores and one for visual scores."""

    text: Scale
    visual: Scale

    def __call__(self, text: Tensor, visual: Tensor, text_weight: float = 0.5) -> Tensor:
        """Return the weighted mean of both on their common scale.

        Args:
            text: (...) language scores in [0, 1].
            visual: (...) visual scores in [0, 1].
            text_weight: share of the language score.
        """
        return text_weight * self.text(text) + (1 - text_weight) * self.visual(visual)


def fit_fusion(rule: Rule, text: Tensor, visual: Tensor) -> Fusion:
    """Fit the scales of a rule to a pool of scores of each kind, of any shape.

    - "mean": unchanged, the paper's plain average.
    - "min-max": the pool's minimum becomes 0, its maximum 1.
    - "rank": the share of the pool's values below.
    - "z-score": deviations from the pool's median in units of its median absolute deviation, compressed into [0, 1].
    - "temperature": visual scores unchanged; the language score's softmax is centered at its median and has the
      temperature at which it spreads as much as the visual scores.
    """
    if rule == "mean":
        return Fusion(_identity, _identity)
    if rule == "temperature":
        return Fusion(_match_temperature(text, visual), _identity)
    fit = {"min-max": _min_max, "rank": _rank, "z-score": _z_score}[rule]
    return Fusion(fit(text), fit(visual))


def _identity(values: Tensor) -> Tensor:
    return values


def _min_max(pool: Tensor) -> Scale:
    low, high = pool.min(), pool.max()
    width = torch.where(high - low > _ROUNDING, high - low, torch.ones_like(low))
    return lambda values: ((values - low) / width).clamp(0, 1)


def _rank(pool: Tensor) -> Scale:
    if pool.max() - pool.min() <= _ROUNDING:
        return lambda values: torch.full_like(values, 0.5)
    ordered = pool.flatten().sort().values
    places = torch.linspace(0, len(ordered) - 1, min(_QUANTILES, len(ordered)), device=pool.device)
    known = ordered[places.round().long()]

    def share_below(values: Tensor) -> Tensor:
        """Return the mean of a value's possible ranks, so that a constant map is ½ everywhere."""
        left = torch.searchsorted(known, values.contiguous())
        right = torch.searchsorted(known, values.contiguous(), right=True)
        # Interpolating between quantiles keeps the order of values.
        below, above = known[(left - 1).clamp_min(0)], known[left.clamp_max(len(known) - 1)]
        width = above - below
        way = torch.where(width > 0, (values - below) / width.clamp_min(1e-12), torch.zeros_like(values))
        between = left - 1 + way.clamp(0, 1) + 0.5
        return (torch.where(left == right, between, (left + right) / 2) / len(known)).clamp(0, 1)

    return share_below


def _z_score(pool: Tensor) -> Scale:
    centre, spread = _centre_and_spread(pool)

    def bent(values: Tensor) -> Tensor:
        z = (values - centre) / spread
        return (1 + z / (_BEND + z.abs())) / 2

    return bent


def _match_temperature(text: Tensor, visual: Tensor) -> Scale:
    centre, spread = _centre_and_spread(text.logit(1e-6))
    _, wanted = _centre_and_spread(visual)
    factor = 4 * wanted / spread  # the slope of a softmax of two is ¼ at its middle
    return lambda values: ((values.logit(1e-6) - centre) * factor).sigmoid()


def _centre_and_spread(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and the median absolute deviation; if that is 0 the mean one, and 1 if all values agree."""
    centre = pool.median()
    deviations = (pool - centre).abs()
    for spread in (deviations.median(), deviations.mean()):
        if spread > _ROUNDING / 10:
            return centre, spread
    return centre, torch.ones_like(centre)
