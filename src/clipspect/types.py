"""Plain data and small helpers shared by all parts of the package. NumPy only; imports nothing of clipspect's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""Precision of the encoder's matmuls; "auto": the fastest one that agrees with fp32."""

Step = Callable[[str, int, int], None]
"""Callback for long steps: what is being done, how many are done, how many there are."""

SIGNATURE_SIDE = 32
"""Cells per side of an image's signature, by which copies of an image are recognized."""


@dataclass(frozen=True)
class Region:
    """A connected part of an image whose scores reach the threshold, in image pixels."""

    left: int
    top: int
    width: int
    height: int
    area: int
    """Pixels covered, at most width · height."""
    peak: float
    """Highest score in the region, in [0, 1]; at least the threshold."""
    peak_x: int
    peak_y: int


Verdict = Literal["flagged", "clean", "stands_out", "suspicious", "undecided", "error"]
"""Verdict on an image (docs/calibration.md).

- flagged, clean: against a threshold from known-good images, or one a user chose (then "undecided" instead of "clean").
- stands_out: unlike the other unlabeled images of the run; never "clean".
- suspicious: one image alone, above the level the model ships with.
- undecided: nothing can be said; the score ranks.
- error: the image could not be read or scored.
"""
FLAGS: frozenset[str] = frozenset({"flagged", "stands_out", "suspicious"})
"""Verdicts that ask for a look."""


_T = TypeVar("_T")


def counted(items: Iterable[_T], total: int, what: str, step: Step | None) -> Iterator[_T]:
    """Yield the items; tell ``step`` how many have been used so far, and if no more are wanted, that these were all."""
    if step is None:
        yield from items
        return
    step(what, 0, total)
    number = 0
    try:
        for number, item in enumerate(items, 1):
            yield item
            step(what, number, total)
    except GeneratorExit:  # the last item was not used
        step(what, number - 1, number - 1)
        raise


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "1 image", "3 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
