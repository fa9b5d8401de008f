"""From a calibration and a score to a verdict and its wording: one rule for every surface."""

from __future__ import annotations

from clipspect.postprocess.calibration import SCORE_THRESHOLD, Calibration
from clipspect.types import Verdict, plural

ADVISED_GOOD = 10

WORDS: dict[str, str] = {
    "flagged": "flagged",
    "clean": "clean",
    "stands_out": "stands out",
    "suspicious": "suspicious",
    "undecided": "undecided",
    "error": "failed",
}
"""Verdicts as people read them."""


def count_verdict(count: int, verdict: str) -> str:
    """Return a number of images with their verdict: "1 stands out", "7 stand out"."""
    return f"{count:,} " + ("stand out" if verdict == "stands_out" and count != 1 else WORDS[verdict])


def threshold_of(calibration: Calibration) -> float | None:
    """The score from which on images are flagged; None where the calibration allows no threshold."""
    chosen = calibration.score_threshold != SCORE_THRESHOLD
    return calibration.score_threshold if chosen or calibration.rule != "none" else None


def verdict_of(calibration: Calibration, score: float) -> Verdict:
    """The verdict on an image with a calibrated score."""
    threshold = threshold_of(calibration)
    if threshold is None:
        return "undecided"
    if score < threshold:
        return "clean" if calibration.is_good else "undecided"
    if calibration.is_good or calibration.score_threshold != SCORE_THRESHOLD:
        return "flagged"
    return "suspicious" if calibration.rule == "shipped level" else "stands_out"


def describe(calibration: Calibration) -> str:
    """How the threshold came about, in one or two sentences."""
    count = plural(calibration.images, "image")
    if calibration.is_good:
        rate, reachable = calibration.false_alarm_rate or 0, 1 / (calibration.images + 1)
        text = f"Threshold from {plural(calibration.images, 'known-good image')}, false-alarm rate {rate:.1%}"
        if calibration.rule == "gumbel":
            text += f" by extrapolation; without it {calibration.images} images reach {reachable:.1%}"
        text += "."
        if calibration.images < ADVISED_GOOD:
            text += f" {ADVISED_GOOD} or more good images are advised."
    elif calibration.rule == "median + 3 sigma":
        text = (
            f"No known-good images: compared with the {count} of this run, images stand out by more than"
            " 3 standard deviations. None is called clean."
        )
    elif calibration.rule == "shipped level":
        text = (
            "One image alone: compared with the level of the model on rendered clean scenes. Known-good images"
            " (--good) allow a verdict."
        )
    elif calibration.false_alarm_rate is not None:
        text = f"{count.capitalize()} known to be good: no threshold can be estimated from fewer than 3."
    else:
        text = (
            f"{count.capitalize()} and no known-good ones: no threshold can be estimated; scores rank the images."
            " Give known-good images with --good."
        )
    if calibration.score_threshold != SCORE_THRESHOLD:
        text += f" Threshold moved to {calibration.score_threshold:g} by hand."
    return text
