"""Measure whether tiling helps: small defects on large rendered surfaces, scored whole and in tiles.

    python benchmarks/tiling.py --out benchmarks/results/tiling.json --page docs/speed.md

Each image is a surface of a kind that the model never saw in training, 1024 pixels wide; every second one has a defect
drawn at a quarter (``small``) or at the whole (``large``) of the image's scale. ``anoclip`` scores the image resized
to the input size, and in overlapping tiles. Random weights are the control.

"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import clipspect
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.benchmark.provenance import provenance
from clipspect.data import tiling
from clipspect.postprocess.maps import resize_map
from clipspect.training.render.fields import Canvas
from clipspect.training.render.photometry import add_noise, develop
from clipspect.training.render.scenes import add_defects, visible_change
from clipspect.training.render.structure import Ground
from clipspect.training.render.textures import HELD_OUT_TEXTURES, draw_surfaces
from pages import replace_between

START, END = "<!-- tiling -->", "<!-- end of tiling -->"
SIDE = 1024
KINDS = ("scratch", "crack", "hole", "pits", "stain")
COMPARED_SIDE = 256
"""Side at which maps and masks are compared."""
_SEED = 51_000


def draw_image(number: int, scale: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return an image (H, W, 3) and its mask (H, W); even numbers are good."""
    names = list(HELD_OUT_TEXTURES)
    kind = names[number // 2 % len(names)]
    large = Canvas(SIDE, _SEED + number)
    surface, _ = draw_surfaces(large, 1, {kind: HELD_OUT_TEXTURES[kind]}, plain=0.0)
    side = SIDE // 4 if scale == "small" else SIDE
    c = Canvas(side, _SEED + 5000 + number)
    top, left = (int(c.uniform(1, 0, 1).item() * (SIDE - side)) for _ in range(2))
    part = surface[:, :, top : top + side, left : left + side].contiguous()
    ground = Ground(part, torch.ones(1, side, side), part.roll(side // 3, -1))
    drawn, region = add_defects(c, ground, [KINDS[number // 2 % len(KINDS)]])
    clean, defective, level = develop(c, part, drawn)
    mask = visible_change(clean, defective, region, level)
    whole, found = surface.clone(), torch.zeros(SIDE, SIDE)
    if number % 2:  # drawn before photometry, so that the part has no seam
        whole[:, :, top : top + side, left : left + side] = drawn
        found[top : top + side, left : left + side] = mask[0]
    noisy = add_noise(large, whole.clamp(0, 1), torch.full((1, 1, 1), 0.012))[0]
    return _bytes(noisy), found.numpy() > 0.5


def _bytes(picture: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray((picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy())


def measure(images: Sequence[Any], tile: int | None, overlap: float, weights: str | None) -> dict[str, float]:
    """Return metrics and processor seconds per image of one tile size and overlap."""
    tiling.OVERLAP = overlap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = clipspect.load("anoclip", tile=tile, weights=weights)
    started = time.process_time()
    found = detector.detect([pixels for pixels, _ in images], "surface")
    seconds = (time.process_time() - started) / len(images)
    maps = [resize_map(one.score_map, COMPARED_SIDE, COMPARED_SIDE) for one in found]
    step = SIDE // COMPARED_SIDE
    masks = [mask.reshape(COMPARED_SIDE, step, COMPARED_SIDE, step).any((1, 3)) for _, mask in images]
    pixel = pixel_metrics(masks, maps)
    image = image_metrics(np.array([m.any() for m in masks]), np.array([one.raw_score for one in found]))
    return {"pixel_auroc": pixel.auroc, "aupro": pixel.aupro, "image_auroc": image.auroc, "seconds": seconds}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument(
        "--images", type=int, default=20, help="per scale of defects; every second one is good"
    )
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.25, 0.0, 0.5])
    arguments = parser.parse_args()
    rows = []
    for scale in ("small", "large"):
        images = [draw_image(number, scale) for number in range(arguments.images)]
        for weights in (None, "random"):
            first = arguments.overlaps[0]
            settings = [(tile, first) for tile in [None, *arguments.tiles]]
            if weights is None:
                settings += [(tile, other) for other in arguments.overlaps[1:] for tile in arguments.tiles]
            for tile, overlap in settings:
                row = {"defects": scale, "tile": tile, "overlap": overlap, "weights": weights or "trained"}
                rows.append({**row, **measure(images, tile, overlap, weights)})
                print(rows[-1], flush=True)
    about = {**provenance("python benchmarks/tiling.py"), "images": arguments.images, "model": "tiny"}
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    table = [
        "| defects | weights | tile | overlap | pixel AUROC | AUPRO | image AUROC | processor seconds an image |"
    ]
    table.append("|---|---|---:|---:|" + "---:|" * 4)
    for row in rows:
        metrics = " | ".join(f"{row[name]:.3f}" for name in ("pixel_auroc", "aupro", "image_auroc"))
        where = f"{row['tile']} | {row['overlap']:.0%}" if row["tile"] else "whole | –"
        table.append(f"| {row['defects']} | {row['weights']} | {where} | {metrics} | {row['seconds']:.1f} |")
    table += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join(table))


if __name__ == "__main__":
    main()
