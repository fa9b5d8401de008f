"""Measure how pure groups of similar defects (clipspect.results.similar) are, on rendered brackets.

python benchmarks/similar_defects.py

All images are grouped, also those that would not be flagged. "neighbor": share of images whose nearest other image has
a defect of the same kind; "pure": share of images that belong to the commonest kind of their group.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

import clipspect
from clipspect.results.similar import group_similar
from clipspect.training.demo_images import BRACKETS, KNOWN_GOOD, as_pixels, render_image

KINDS = tuple(dict.fromkeys(kind for kind, _ in BRACKETS if kind != "good"))
FIRST_SEED = 301


def main() -> None:
    """Print one row per weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", default="mutual")
    parser.add_argument("--each", type=int, default=8, help="images of each kind of defect")
    arguments = parser.parse_args()
    kinds = np.repeat(KINDS, arguments.each)
    seeds = [*range(FIRST_SEED, FIRST_SEED + arguments.each)] * len(KINDS)
    images = [as_pixels(render_image(kind, seed)[0]) for kind, seed in zip(kinds, seeds, strict=True)]
    good = [as_pixels(render_image("good", seed)[0]) for seed in KNOWN_GOOD]
    print(f"{len(images)} images of {len(KINDS)} kinds, {arguments.method}, {len(good)} known-good images")
    print("| weights | flagged | neighbor | groups | pure | in no group |\n|---|---|---|---|---|---|")
    for weights in ("tiny", "random"):
        detector = clipspect.load(arguments.method, **({} if weights == "tiny" else {"weights": weights}))
        found = detector.detect(images, "metal bracket", good=detector.calibrate(good, "metal bracket"))
        vectors = np.stack([one.embedding for one in found]).astype(np.float32)
        cosines = vectors @ vectors.T - 2 * np.eye(len(vectors), dtype=np.float32)
        neighbor = float((kinds[cosines.argmax(1)] == kinds).mean())
        groups = np.array(group_similar(vectors))
        pure = sum(Counter(kinds[groups == g]).most_common(1)[0][1] for g in set(groups) - {0})
        flagged, grouped = sum(bool(one.flag) for one in found), int((groups > 0).sum())
        print(
            f"| {weights} | {flagged} | {neighbor:.2f} | {groups.max()} | {pure / max(grouped, 1):.2f}"
            f" | {len(groups) - grouped} |"
        )


if __name__ == "__main__":
    main()
