"""Thresholds without labels: from known-good images, or guessed from the run itself, or given.

An image threshold decides which images are flagged (score ≥ threshold), a pixel threshold where their
maps are cut into regions (value ≥ threshold). Both guesses are made on the log-odds scale, log(p / (1 − p)):
scores are probabilities, which pile up at 0, and there a good image's spread is closer to symmetric; a
threshold also can never leave (0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipspect.detection import Detection, Thresholds
from clipspect.errors import UsageError

MIN_IMAGES_TO_GUESS = 8
NEUTRAL_SCORE = 0.5
"""Where a score leans to neither side: the sentences about damage fit as well as those about a good part."""
LOWER_HALF_SIGMAS = 3.0
PIXEL_SIGMAS = 4.0
LEAST_SPREAD = 1e-3
"""Least standard deviation in log-odds that a guess works with, so that equal scores flag nothing."""
LEAST = 1e-6
"""Probabilities nearer to 0 or 1 than this count as this near, in scores and in guessed thresholds."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LOWER_QUARTILE, LOWER_TAIL = 0.25, 0.05
QUARTILE_Z, TAIL_Z = 0.6745, 1.6449
"""Distance of these two quantiles below the mean of a normal distribution, in standard deviations."""


def given_thresholds(image: float, pixel: float | None = None) -> Thresholds:
    """Thresholds somebody chose; where no pixel threshold is given, :func:`settle_pixel` estimates one later.

    Raises UsageError outside [0, 1].
    """
    for value in (image, image if pixel is None else pixel):
        if not 0 <= value <= 1:
            raise UsageError(f"threshold {value}: scores lie within [0, 1], and so must a threshold")
    if pixel is None:
        note = f"Chosen by hand: scores from {image:g}. The pixel threshold is estimated from the maps."
        return Thresholds(image, image, "given", note, pixel_open=True)
    return Thresholds(
        image, pixel, "given", f"Chosen by hand: scores from {image:g}, map values from {pixel:g}."
    )


def settle_pixel(chosen: Thresholds, guess: Thresholds) -> Thresholds:
    """Thresholds in which an open pixel threshold is that of a guess from the maps."""
    return replace(chosen, pixel=guess.pixel) if chosen.pixel_open else chosen


def thresholds_from_good(
    scores: Sequence[float], map_peaks: Sequence[float], false_alarm_rate: float
) -> Thresholds:
    """Thresholds that a good image passes with probability at most ``false_alarm_rate``.

    ``scores`` and ``map_peaks`` are the score and the highest compact-map value of each known-good
    image. Each threshold lies just above the ⌈(n + 1)(1 − rate)⌉-th smallest of the n values: the
    conformal quantile, which holds for any distribution as long as later good images are like these.
    With n < 1 / rate − 1 that rank is beyond the highest value; then the highest is taken and the note says
    which rate that stands for.

    Raises UsageError for a rate outside (0, 1) or no good image that could be scored.
    """
    if not 0 < false_alarm_rate < 1:
        raise UsageError(
            f"false-alarm rate {false_alarm_rate}: wanted is a share between 0 and 1, such as 0.01"
        )
    good = _finite(scores)
    if not len(good):
        raise UsageError("none of the good images could be scored, so no threshold follows from them")
    count, rank = len(good), math.ceil((len(good) + 1) * (1 - false_alarm_rate))
    images = "images" if count > 1 else "image"
    note = f"From {count} good {images} at a false-alarm rate of {false_alarm_rate:.3g}"
    if rank > count:
        note += f"; so few allow no rate below {1 / (count + 1):.2g}, and the highest good score was taken"
    return Thresholds(
        _just_above(good, rank), _just_above(_finite(map_peaks), rank), "good images", note + "."
    )


def guess_thresholds(
    scores: Sequence[float], map_peaks: Sequence[float], pixel_samples: ArrayLike
) -> Thresholds:
    """Thresholds from the unlabelled images of a run: robust estimates, never NaN, marked as a guess.

    The lower half of the scores is taken for good images, and the lower half of the maps' peaks
    likewise. Their middle and standard deviation σ follow, as for a normal distribution in log-odds, from the
    25 % and the 5 % quantile of all, and each threshold is the middle + 3 σ. Where half of the images
    are defective it lies higher (about 5 σ), so obvious defects stay flagged and hardly any good image
    is. Peaks and not all map values set the pixel threshold, because a good part's own edges and holes make
    its map uneven.

    Below 8 images that cannot be estimated. Then the image threshold is the neutral score 0.5, and the
    pixel threshold median + 4 · 1.4826 · MAD of map values sampled from all images, in log-odds.
    """
    finite = _finite(scores)
    remedy = "Give good images or a number for a threshold to rely on."
    if len(finite) < MIN_IMAGES_TO_GUESS:
        note = (
            f"A guess. Fewer than {MIN_IMAGES_TO_GUESS} images allow no estimate, so the neutral "
            f"score {NEUTRAL_SCORE} was taken. {remedy}"
        )
        return Thresholds(NEUTRAL_SCORE, _above_most(_finite(pixel_samples)), "guess", note)
    note = (
        f"A guess. Estimated from the {len(finite)} scores of this run, taking the lower half for good "
        f"images. {remedy}"
    )
    return Thresholds(_above_lower_half(finite), _above_lower_half(_finite(map_peaks)), "guess", note)


def guess_for(detections: Sequence[Detection]) -> Thresholds:
    """:func:`guess_thresholds` of detections in memory; those without a map are left out."""
    scored = [d for d in detections if d.score_map is not None]
    samples = np.concatenate([np.empty(0, np.float16), *(d.compact_map.ravel() for d in scored)])
    return guess_thresholds([d.score for d in scored], [float(d.compact_map.max()) for d in scored], samples)


def _above_lower_half(values: NDArray[np.float64]) -> float:
    """Middle + 3 σ of what the lower half of the values comes from."""
    quartile, tail = np.quantile(_log_odds(values), [LOWER_QUARTILE, LOWER_TAIL])
    sigma = max(float(quartile - tail) / (TAIL_Z - QUARTILE_Z), LEAST_SPREAD)
    return _probability(float(quartile) + (QUARTILE_Z + LOWER_HALF_SIGMAS) * sigma)


def _above_most(values: NDArray[np.float64]) -> float:
    """Median + 4 σ, σ from the median absolute deviation."""
    if not len(values):
        return NEUTRAL_SCORE
    odds = _log_odds(values)
    middle = float(np.median(odds))
    sigma = max(MAD_TO_SIGMA * float(np.median(np.abs(odds - middle))), LEAST_SPREAD)
    return _probability(middle + PIXEL_SIGMAS * sigma)


def _just_above(values: NDArray[np.float64], rank: int) -> float:
    """The next number after the rank-th smallest value (from 1), the highest where there is no such rank."""
    if not len(values):
        return NEUTRAL_SCORE
    return float(np.nextafter(np.sort(values)[min(rank, len(values)) - 1], np.inf))


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def _log_odds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(values, LEAST, 1 - LEAST)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _probability(log_odds: float) -> float:
    return min(max(1 / (1 + math.exp(-log_odds)), LEAST), 1 - LEAST)
