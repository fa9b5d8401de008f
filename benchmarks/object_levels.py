"""Compare a model's image scores on clean rendered images of each held-out kind, which training never renders.

    python benchmarks/object_levels.py --page src/clipspect/backbones/tiny/MODEL_CARD.md

The score of a good image should not depend on what is on it. Each kind is rendered alone, 60 clean images and the same
images with a defect; scores are ``anoclip``'s, of the class token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

import clipspect
from clipspect.benchmark.provenance import provenance
from clipspect.detector import Detector
from clipspect.training.render import HELD_OUT, Canvas, World, draw_scenes
from pages import replace_between

START, END = "<!-- object levels -->", "<!-- end of object levels -->"
SIDE, BATCH, SEED = 256, 20, 99


def worlds() -> Iterator[tuple[str, World]]:
    """Yield each held-out kind's name and a world of nothing else."""
    for name, texture in HELD_OUT.textures.items():
        yield f"{name} (surface)", replace(HELD_OUT, textures={name: texture}, object_share=0.0)
    for name, shape in HELD_OUT.shapes.items():
        yield f"{name} (part)", replace(HELD_OUT, shapes={name: shape}, object_share=1.0)


def scores(detector: Detector, world: World, count: int) -> tuple[list[float], list[float]]:
    """Return image scores of clean images, and of the same images with a defect."""
    canvas, clean, defective = Canvas(SIDE, SEED), [], []

    def score(image: Tensor, noun: str) -> float:
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        return float(detector.detect(pixels, object=noun).raw_score)

    while len(clean) < count:
        drawn = draw_scenes(canvas, min(BATCH, count - len(clean)), world)
        clean += [score(image, noun) for image, noun in zip(drawn.clean, drawn.nouns, strict=True)]
        defective += [score(image, noun) for image, noun in zip(drawn.defective, drawn.nouns, strict=True)]
    return clean, defective


def main() -> None:
    """Measure every kind, and print or insert the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=60, help="images of each kind")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    detector = clipspect.load("anoclip", "tiny", image_size=SIDE)
    lines = [
        "| kind | clean: median | 95th percentile | share above .5 | defective: median |",
        "|---|---|---|---|---|",
    ]
    for name, world in worlds():
        clean, defective = scores(detector, world, arguments.count)
        above = np.mean(np.array(clean) >= 0.5)
        lines.append(
            f"| {name} | {np.median(clean):.3f} | {np.quantile(clean, 0.95):.3f} | {above:.2f} |"
            f" {np.median(defective):.3f} |"
        )
        print(lines[-1], flush=True)
    about = ", ".join(f"{k}: {v}" for k, v in provenance("python benchmarks/object_levels.py").items())
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join([*lines, "", about]))


if __name__ == "__main__":
    main()
