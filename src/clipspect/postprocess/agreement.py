"""How far maps in another precision or runtime are from those in float32, and from where on that is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipspect.errors import UsageError

MIN_AGREEMENT = 0.999
"""Least rank correlation with float32's maps, of the worst image, at which a faster arithmetic is used."""


@dataclass(frozen=True)
class MapAgreement:
    """What changed between two sets of maps of the same images."""

    max_abs: float
    """Largest difference of any map value."""
    rank_correlation: float
    """Spearman's, within each image's map; the lowest of all images."""
    score_max_abs: float
    """Largest difference of any image score."""

    def __str__(self) -> str:
        """In words."""
        return (
            f"maps within {self.max_abs:.1e} of fp32, rank correlation {self.rank_correlation:.5f},"
            f" scores within {self.score_max_abs:.1e}"
        )

    def check(self, what: str, bar: float = MIN_AGREEMENT) -> None:
        """Raise UsageError where the maps order the pixels of an image too differently."""
        if not self.rank_correlation >= bar:  # NaN is refused as well
            raise UsageError(
                f"{what} was measured and refused: {self}; the bar is a rank correlation of {bar:g}."
                f" Use fp32 for these weights"
            )


def compare_maps(
    exact: NDArray[np.float32],
    rough: NDArray[np.float32],
    exact_scores: NDArray[np.float32],
    rough_scores: NDArray[np.float32],
) -> MapAgreement:
    """The agreement of B maps (B, …) and B image scores (B,) with those in float32."""
    correlations = [rank_correlation(a, b) for a, b in zip(exact, rough, strict=True)]
    return MapAgreement(
        float(np.abs(exact - rough).max()),
        min(correlations),
        float(np.abs(exact_scores - rough_scores).max()),
    )


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two arrays' values, ties at the mean of their ranks; NaN for a constant one."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b, axis=None).statistic)
