"""Measure scores with an automatic foreground mask: AnomalyDINO's (docs/methods.md §9) on rendered brackets.

OMP_NUM_THREADS=1 python benchmarks/foreground.py    # one thread renders faster on a busy machine

The mask is where the first principal component of an image's tokens exceeds Otsu's threshold; its sign is that of the
central window, and it is dilated and closed, as in AnomalyDINO. Outside of it the verdict's layer is set to its lowest
value. "part" is the renderer's own mask of the part. Ten known-good images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import clipspect
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.methods.anomaly_dino import first_component
from clipspect.postprocess.maps import resize_map
from clipspect.tensors import image_tensor
from clipspect.training.demo_images import BRACKETS, KNOWN_GOOD, SIDE, as_pixels, draw_bracket, render_image
from clipspect.training.render import Canvas

KINDS = tuple(dict.fromkeys(kind for kind, _ in BRACKETS if kind != "good"))
FIRST_SEED = 401
COMPARED_SIDE = 96
Mask = NDArray[np.bool_]


def otsu(values: NDArray[np.float64]) -> float:
    """Return the threshold that parts values into the two classes of least variance."""
    ordered = np.sort(values)
    count = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1] / count
    above = (ordered.sum() - np.cumsum(ordered)[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (below - above) ** 2
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def foreground(tokens: Tensor) -> Mask:
    """Return the (H, W) mask of (H, W, D) tokens."""
    height, width = tokens.shape[:2]
    component = first_component(F.normalize(tokens, dim=-1).flatten(0, 1)).view(height, width)
    mask = component > otsu(component.flatten().numpy())
    center = tuple(slice(int(0.2 * side), int(0.8 * side)) for side in (height, width))
    if mask[center].double().mean() < mask.double().mean():
        mask = ~mask
    grid = mask.float()[None, None]
    for _ in range(2):
        grid = F.max_pool2d(grid, 3, 1, 1)
    return (-F.max_pool2d(-grid, 3, 1, 1))[0, 0].numpy() > 0.5


def shrunk(mask: Tensor, side: int) -> Mask:
    """Return the (side, side) cells that hold a pixel of a mask (S, S)."""
    return F.adaptive_max_pool2d((mask > 0.02).float()[None, None], side)[0, 0].numpy() > 0


def measure(
    layers: Sequence[NDArray[np.float32]], inside: Sequence[Mask] | None, truth: Sequence[Mask]
) -> tuple[float, float, float]:
    """Return image AUROC, pixel AUROC and AUPRO of layers (h, w) that are empty outside of masks."""
    lowest = min(float(layer.min()) for layer in layers)
    maps = []
    for number, layer in enumerate(layers):
        if inside is not None:
            mask = torch.from_numpy(inside[number]).float()[None, None]
            cells = F.interpolate(mask, layer.shape)[0, 0].numpy() > 0
            layer = np.where(cells, layer, lowest)
        maps.append(layer)
    labels = np.array([mask.any() for mask in truth])
    image = image_metrics(labels, np.array([one.max() for one in maps])).auroc
    pixel = pixel_metrics(truth, [resize_map(one, COMPARED_SIDE, COMPARED_SIDE) for one in maps])
    return image, pixel.auroc, pixel.aupro


def main() -> None:
    """Print one row per method and mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["anoclip", "mutual", "anomaly-dino"])
    parser.add_argument("--each", type=int, default=4, help="images of each kind of defect")
    arguments = parser.parse_args()
    shown = [(kind, FIRST_SEED + n) for kind in KINDS for n in range(arguments.each)]
    shown += [("good", FIRST_SEED + 100 + n) for n in range(len(shown))]
    drawn = [render_image(*one) for one in shown]
    images = [as_pixels(one) for one, _ in drawn]
    truth = [shrunk(mask, COMPARED_SIDE) for _, mask in drawn]
    good = [as_pixels(render_image("good", seed)[0]) for seed in KNOWN_GOOD]
    print(f"{len(images)} images, half of them good")
    print("| method | mask | image AUROC | pixel AUROC | AUPRO |\n|---|---|---|---|---|")
    for method in arguments.methods:
        detector = clipspect.load(method)
        known = detector.calibrate(good, "metal bracket")
        found = detector.stream(images, object="metal bracket", good=known)
        layers = [one.compact_layers[-1].astype(np.float32) for one in found]
        masks: Mapping[str, Sequence[Mask] | None] = {
            "none": None,
            **automatic_masks(images),
            "part": [shrunk(draw_bracket(Canvas(SIDE, seed)).part[0], 32) for _, seed in shown],
        }
        for name, inside in masks.items():
            values = " | ".join(f"{value:.3f}" for value in measure(layers, inside, truth))
            print(f"| {method} | {name} | {values} |", flush=True)


def automatic_masks(images: Sequence[NDArray[np.uint8]]) -> dict[str, list[Mask]]:
    """Return masks by the tokens that they are made from: V-V ones of the last block, and the trunk's."""
    detector = clipspect.load("mutual")
    masks: dict[str, list[Mask]] = {"V-V tokens": [], "trunk": []}
    for image in images:
        features = detector.model.encode(
            image_tensor([detector.reader.read(image)], detector.backbone)
        ).features
        patches, trunk = features.compared_patches, features.trunk
        assert patches is not None
        assert trunk is not None
        masks["V-V tokens"].append(foreground(patches[0]))
        masks["trunk"].append(foreground(trunk[0]))
    return masks


if __name__ == "__main__":
    main()
