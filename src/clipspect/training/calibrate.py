"""Calibrate verdicts on one image: the peak of the anomaly map on clean rendered scenes of held-out kinds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from clipspect.backbones.openclip.backbone import load_backbone
from clipspect.backbones.presets import TINY_FOLDER
from clipspect.methods.anoclip import AnoCLIP
from clipspect.methods.base import MethodContext
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.prompts.anchors import TextAnchors, encode_anchors
from clipspect.training.render import HELD_OUT, Canvas, draw_scenes

_SIDE, _BATCH, _SEED = 256, 20, 424_242
CALIBRATION = "calibration.json"


def clean_peaks(model: str, scenes: int) -> tuple[list[float], list[float]]:
    """Return the peak of AnoCLIP's anomaly map and its anomaly score, one each per clean scene."""
    backbone, method, canvas = load_backbone(model, image_size=_SIDE), AnoCLIP(), Canvas(_SIDE, _SEED)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    wording, anchors = PromptConfig(load_prompts()), dict[str, TextAnchors]()
    peaks: list[float] = []
    scores: list[float] = []
    while len(peaks) < scenes:
        drawn = draw_scenes(canvas, min(_BATCH, scenes - len(peaks)), HELD_OUT)
        for noun, image in zip(drawn.nouns, drawn.clean, strict=True):
            if noun not in anchors:
                anchors[noun] = encode_anchors(backbone, *wording.sentences("anoclip", noun))
            pixels = ((image * 255).round() / 255 - mean) / std
            features = backbone.encode(pixels[None], method.request())
            found = method.score(features, MethodContext(anchors[noun], (_SIDE, _SIDE), seeds=(0,)))
            peaks.append(float(found.map.max()))
            scores.append(float(found.image))
    return peaks, scores


def main() -> None:
    """Write ``calibration.json`` beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m clipspect.training.calibrate", description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY_FOLDER, help="a model folder")
    parser.add_argument("--scenes", type=int, default=500)
    arguments = parser.parse_args()
    peaks, scores = clean_peaks(str(arguments.model), arguments.scenes)
    levels = {
        "method": "anoclip",
        "peak_95": round(float(np.quantile(peaks, 0.95)), 4),
        "peak_99": round(float(np.quantile(peaks, 0.99)), 4),
        "image_score_median": round(float(np.median(scores)), 4),
        "image_score_95": round(float(np.quantile(scores, 0.95)), 4),
        "scenes": len(peaks),
        "image_size": _SIDE,
        "command": f"python -m clipspect.training.calibrate --scenes {arguments.scenes}",
    }
    (arguments.model / CALIBRATION).write_text(json.dumps(levels, indent=2) + "\n")
    print(json.dumps(levels))


if __name__ == "__main__":
    main()
