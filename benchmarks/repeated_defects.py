"""Measure what leaving out repeated defects gains and costs, with the offline model and with random weights.

    python benchmarks/repeated_defects.py --out runs/repeated --page docs/methods.md

scores rendered sets (``repeated_sets.py``) by ``mutual`` with ``repeated=keep`` and ``repeated=leave-out``, prints the
metrics, writes ``repeated.json``, and inserts the table into the page. Maps are compared with masks at 128×128.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablation_sets import MASK_SIDE
from clipspect.backbones.base import Backbone
from clipspect.backbones.features import Features
from clipspect.backbones.loader import load_backbone
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.benchmark.provenance import provenance
from clipspect.data.transforms import normalize
from clipspect.methods.base import MethodContext
from clipspect.registry import make_method
from pages import replace_between
from repeated_sets import KINDS, RepeatedSet, repeated_sets

BATCH = 8
RULES = ("keep", "leave-out")
START, END = "<!-- repeated defects -->", "<!-- end of repeated defects -->"


@dataclass(frozen=True)
class Row:
    """Metrics of one rule on one set."""

    kind: str
    product: int
    defect: str
    weights: str
    rule: str
    image_auroc: float
    pixel_auroc: float
    aupro: float
    left_out_right: int
    """Images with the repeated defect or mark that are left out as references."""
    left_out_wrong: int
    repeated: int
    """Images with the repeated defect or mark."""
    seconds: float


@torch.inference_mode()
def measure(pictures: RepeatedSet, backbone: Backbone, weights: str) -> list[Row]:
    """Score a set by both rules; every image is encoded once."""
    request = make_method("mutual", {"output": "visual"}).request()
    images = torch.from_numpy(normalize(pictures.pieces, backbone.mean, backbone.std))
    features = Features.concat([backbone.encode(part, request) for part in images.split(BATCH)])
    numbers = list(range(len(features)))
    context = MethodContext(None, (MASK_SIDE, MASK_SIDE), numbers, pool_index=numbers)
    rows = []
    for rule in RULES:
        method = make_method("mutual", {"output": "visual", "repeated": rule, "search": "exact"})
        started = time.perf_counter()
        compared = method.gather(features, context)
        visual = method.visual_map(features, context, compared)
        seconds = time.perf_counter() - started
        maps = method.finish(visual, context)
        pixel = pixel_metrics(list(pictures.masks), list(maps.numpy()))
        image = image_metrics(pictures.masks.any((1, 2)), visual.amax((1, 2)).numpy())
        found = np.zeros(len(features), dtype=bool)
        found[sorted(compared.left_out)] = True
        repeated = pictures.repeated if pictures.kind != "no repetition" else np.zeros_like(found)
        rows.append(
            Row(
                pictures.kind,
                pictures.product,
                pictures.defect,
                weights,
                rule,
                image.auroc,
                pixel.auroc,
                pixel.aupro,
                int((found & repeated).sum()),
                int((found & ~repeated).sum()),
                int(repeated.sum()),
                seconds,
            )
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Return a table: a line per kind of set, weights and rule; means over the products."""
    out = [
        "| sets | weights | products | `repeated` | image AUROC | pixel AUROC | AUPRO | left out rightly | wrongly |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for weights in ("trained", "random"):
            for rule in RULES:
                own = [r for r in rows if (r.kind, r.weights, r.rule) == (kind, weights, rule)]
                if not own:
                    continue
                means = [
                    np.mean([getattr(r, key) for r in own]) for key in ("image_auroc", "pixel_auroc", "aupro")
                ]
                right, repeated, wrong = (
                    sum(getattr(r, key) for r in own)
                    for key in ("left_out_right", "repeated", "left_out_wrong")
                )
                shown = " | ".join(f"{m:.3f}" for m in means)
                out.append(
                    f"| {kind} | {weights} | {len(own)} | {rule} | {shown} | {right} of {repeated} | {wrong} |"
                )
    return "\n".join(out)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for repeated.json")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--products", type=int, default=4)
    parser.add_argument("--images", type=int, default=24, help="per set")
    parser.add_argument("--share", type=float, default=0.3, help="of the images, with the same defect")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    rows: list[Row] = []
    about: dict[str, Any] = provenance("python benchmarks/repeated_defects.py")
    for weights in ("trained", "random"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = load_backbone("tiny", None if weights == "trained" else "random", device="cpu")
        about[f"tiny, {weights}"] = backbone.fingerprint[:12]
        for pictures in repeated_sets(
            backbone.image_size, arguments.products, arguments.images, arguments.share
        ):
            if pictures.kind not in arguments.kinds:
                continue
            rows += measure(pictures, backbone, weights)
            for row in rows[-len(RULES) :]:
                print(row, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2)
    (arguments.out / "repeated.json").write_text(stored + "\n", encoding="utf-8")
    made = ", ".join(f"{key}: {value}" for key, value in about.items())
    table = f"{markdown(rows)}\n\n{made}; {arguments.products} products of {arguments.images} images a kind"
    print(table)
    if arguments.page:
        replace_between(arguments.page, START, END, table)


if __name__ == "__main__":
    main()
