"""Measure the level of one image alone on clean rendered scenes of held-out kinds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import clipspect
from clipspect.backbones.levels import LEVEL_FILE, measure_level, write_levels
from clipspect.backbones.presets import TINY_FOLDER
from clipspect.detector import Detector
from clipspect.postprocess.calibration import Summary
from clipspect.training.render import HELD_OUT, Canvas, draw_scenes

_SIDE, _BATCH, _SEED = 256, 20, 424_242


def clean_summaries(detector: Detector, scenes: int) -> list[Summary]:
    """Summaries of clean scenes, each under its own object's name."""
    canvas = Canvas(_SIDE, _SEED)
    found: list[Summary] = []
    while len(found) < scenes:
        drawn = draw_scenes(canvas, min(_BATCH, scenes - len(found)), HELD_OUT)
        for noun, image in zip(drawn.nouns, drawn.clean, strict=True):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
            found.append(detector.detect(pixels, object=noun).summary)
    return found


def level_on_scenes(detector: Detector, scenes: int, command: str) -> dict[str, Any]:
    """The level of a detector's one method on clean scenes."""
    (method,) = detector.methods
    return measure_level(
        method.name, clean_summaries(detector, scenes), detector.backbone.image_size, command
    )


def main() -> None:
    """Write ``calibration.json`` beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m clipspect.training.calibrate", description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY_FOLDER, help="a model folder")
    parser.add_argument("--scenes", type=int, default=500)
    arguments = parser.parse_args()
    detector = clipspect.load("anoclip", str(arguments.model), image_size=_SIDE)
    command = f"python -m clipspect.training.calibrate --scenes {arguments.scenes}"
    write_levels(arguments.model / LEVEL_FILE, level_on_scenes(detector, arguments.scenes, command))


if __name__ == "__main__":
    main()
