"""Compare how an image is compared with its own template, on rendered held-out scenes.

    python benchmarks/own_templates.py --page src/clipspect/backbones/tiny/MODEL_CARD.md

Every scene is there with and without its defect; the template is its clean twin with other exposure, displaced by at
most so many pixels, and an eighth of that number in degrees and percent. Scenes of all kinds, and parts of which one is
missing, turned, displaced or of another size; kinds that no training renders. The joint map of ``dual-image``. Random
weights are the control.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import clipspect
from clipspect.backbones.features import Features
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.benchmark.provenance import provenance
from clipspect.detector import Detector
from clipspect.methods.base import MethodContext
from clipspect.registry import make_method
from clipspect.training.render import DEFECTS, HELD_OUT, Canvas, Scenes, World, draw_in_batches
from pages import replace_between

START, END = "<!-- own templates -->", "<!-- end of own templates -->"
SIDE, MASK_SIDE, BATCH = 256, 64, 8
VARIANTS = {
    "trunk and block": {"visual_features": "both", "reach": 0.0},
    "trunk": {"visual_features": "trunk", "reach": 0.0},
    "block": {"visual_features": "blocks", "reach": 0.0},
    "block, near patches (shipped)": {},
}
DISPLACEMENTS = (0, 8, 40)
WORLDS = {
    "all kinds": HELD_OUT,
    "odd part": replace(HELD_OUT, object_share=1.0, defects={"odd part": DEFECTS["odd part"]}),
}
EXPOSURE, SEED = 0.04, 77


def displaced(images: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """(N, 3, S, S) images moved, turned, scaled and exposed by random amounts."""

    def draw(most: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * most

    angle, scale = draw(math.radians(pixels / 8)), torch.exp(draw(pixels / 800))
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    moves = [draw(2 * pixels / images.shape[-1]) for _ in range(2)]
    theta = torch.stack(
        [torch.stack([cosine, -sine, moves[0]], 1), torch.stack([sine, cosine, moves[1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    exposure = torch.exp(EXPOSURE * torch.randn(len(images), 1, 1, 1, generator=generator))
    return (moved * exposure).clamp(0, 1)


def encode(detector: Detector, images: Tensor) -> Features:
    """Encode images (N, 3, S, S) in [0, 1]."""
    backbone = detector.backbone
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    request = make_method("dual-image").request()
    return Features.concat([backbone.encode((part - mean) / std, request) for part in images.split(BATCH)])


def scenes_of(world: World, count: int) -> Scenes:
    """Render scenes with a visible defect, ``count`` at most."""
    drawn = draw_in_batches(Canvas(SIDE, SEED), count, world, 24)
    seen = drawn.mask.flatten(1).amax(1) > 0
    return Scenes(drawn.clean[seen], drawn.defective[seen], drawn.mask[seen], [], [])


def figures(detector: Detector, drawn: Scenes) -> Iterator[tuple[str, int, str]]:
    """Yield (variant, displacement, pixel AUROC / AUPRO / image AUROC of the map's maximum)."""
    generator, count = torch.Generator().manual_seed(3), len(drawn.mask)
    images = encode(detector, torch.cat([drawn.defective, displaced(drawn.clean, 0, generator)]))
    small = F.adaptive_max_pool2d(drawn.mask[:, None], MASK_SIDE)[:, 0] > 0
    masks = list(torch.cat([small, torch.zeros_like(small)]).numpy())
    labels, rows = np.arange(len(images)) < count, list(range(len(images)))
    anchors = detector.model.set_object("part").anchors["dual-image"]
    for pixels in DISPLACEMENTS:
        twins = torch.cat([displaced(drawn.clean, pixels, generator) for _ in range(2)])
        known = encode(detector, twins)
        context = MethodContext(anchors, (SIDE, SIDE), rows, pool_index=rows, paired_references=known)
        for name, settings in VARIANTS.items():
            method = make_method("dual-image", settings)
            scores = method.score(images, replace(context, state=method.prepare(images, context)))
            maps = F.adaptive_avg_pool2d(scores.map[:, None], MASK_SIDE)[:, 0]
            pixel = pixel_metrics(masks, list(maps.numpy()))
            image = image_metrics(labels, maps.flatten(1).amax(1).numpy())
            yield name, pixels, f"{pixel.auroc:.3f} / {pixel.aupro:.3f} / {image.auroc:.3f}"


def main() -> None:
    """Measure, and print or insert the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=60, help="scenes of each group")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    lines = [
        "| scenes | displaced by at most | compared by | tiny | random weights |",
        "|---|---|---|---|---|",
    ]
    detectors = [
        clipspect.load("dual-image", "tiny", weights, image_size=SIDE) for weights in (None, "random")
    ]
    for kinds, world in WORLDS.items():
        drawn = scenes_of(world, arguments.scenes)
        for own, control in zip(*(figures(one, drawn) for one in detectors), strict=True):
            name, pixels, found = own
            lines.append(f"| {kinds} | {pixels} px | {name} | {found} | {control[2]} |")
            print(lines[-1], flush=True)
    about = ", ".join(f"{k}: {v}" for k, v in provenance("python benchmarks/own_templates.py").items())
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join([*lines, "", about]))


if __name__ == "__main__":
    main()
