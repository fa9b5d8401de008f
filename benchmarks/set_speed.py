"""Compare exact and fast mutual scoring: accuracy on the same sets, and cost per image relative to AnoCLIP.

    python benchmarks/set_speed.py --out benchmarks/results/set_speed.json --page docs/speed.md --data data

Accuracy: AUPRO and image AUROC of both on rendered products, and on real images where ``--data`` has them, with a
control under random weights. Cost: images are tensors in memory, so that only encoding and scoring count. The methods
take turns batch by batch, so that other load on the machine affects all of them. A run of n images is a set of 128,
which serves as reference, and n − 128 further images; exact scoring is timed on every fourth of its batches.

"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clipspect
from ablation_sets import MASK_SIDE, PictureSet, deep_pcb, magnetic_tile, rendered
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.benchmark.provenance import provenance
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec, normalize
from clipspect.methods.base import Scores
from clipspect.model import AnomalyModel, Encoded
from pages import replace_between

BATCH = 8
START, END = "<!-- set speed -->", "<!-- end of set speed -->"
SEARCHES = ("exact", "fast")
EXACT_EVERY = 4


def make_model(method: str, weights: str | None, search: str | None = None) -> AnomalyModel:
    """Return the model of a method with the offline backbone."""
    settings = {} if search is None else {"settings": {"search": search}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clipspect.load(method, weights=weights, batch_size=BATCH, **settings).model


def tensors(pictures: PictureSet, model: AnomalyModel) -> torch.Tensor:
    """(N, 3, S, S) normalized images of a set."""
    return torch.from_numpy(normalize(pictures.pieces, model.backbone.mean, model.backbone.std))


def accuracy(sets: Sequence[PictureSet], weights: str | None, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return AUPRO and image AUROC of exact and fast scoring per set and number of images."""
    models = {search: make_model("mutual", weights, search) for search in SEARCHES}
    rows: list[dict[str, Any]] = []
    for pictures in sets:
        images = tensors(pictures, models["exact"])
        encoded = models["exact"].encode(images)
        for size in dict.fromkeys(min(size, len(images)) for size in sizes):
            # Evenly spread, so that each kind of defect is in every sample.
            part = np.linspace(0, len(images) - 1, size).round().astype(int).tolist()
            masks = pictures.masks[part]
            row: dict[str, Any] = {"data": pictures.data, "object": pictures.object, "images": size}
            row["weights"] = "random" if weights else "trained"
            for search, model in models.items():
                scores = score_set(model.set_object(pictures.object), encoded[part])
                row[f"aupro_{search}"] = pixel_metrics(list(masks), list(scores.map.numpy())).aupro
                row[f"auroc_{search}"] = image_metrics(masks.any((1, 2)), scores.image.numpy()).auroc
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


@torch.inference_mode()
def score_set(model: AnomalyModel, encoded: Encoded) -> Scores:
    """Score the images of an encoded set."""
    fitted = model.fit_set(encoded)
    assert fitted.pool is not None
    count = len(encoded)
    assert len(fitted.pool) == count, "the set holds copies of an image"
    parts = [list(range(i, min(i + BATCH, count))) for i in range(0, count, BATCH)]
    return Scores.concat(
        [
            fitted.score(encoded.features[part], pool_index=part, size=(MASK_SIDE, MASK_SIDE))["mutual"]
            for part in parts
        ]
    )


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.inference_mode()
def cost_of_sets(images: torch.Tensor, sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return seconds per image of a whole set: encoding, comparison and scores. Medians of the repeats, in turns."""
    anoclip = make_model("anoclip", None).set_object("surface")
    models = {search: make_model("mutual", None, search).set_object("surface") for search in SEARCHES}

    def run(model: AnomalyModel, part: torch.Tensor) -> None:
        model = model.fit_set(model.encode(part)) if model.uses_sets else model
        for batch in part.split(BATCH):
            model(batch)

    rows = []
    run(anoclip, images[:BATCH])
    for size in sizes:
        times = defaultdict(list)
        for _ in range(repeats):
            for name, model in {"anoclip": anoclip, **models}.items():
                times[name].append(seconds(partial(run, model, images[:size])) / size)
        rows.append({"images": size, **{name: float(np.median(each)) for name, each in times.items()}})
        ratios = {name: np.median(np.divide(times[name], times["anoclip"])) for name in SEARCHES}
        rows[-1] |= {f"ratio_{name}": float(ratio) for name, ratio in ratios.items()}
        print(json.dumps(rows[-1]), flush=True)
    return rows


@torch.inference_mode()
def cost_of_runs(images: torch.Tensor, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return seconds per image of runs longer than the set; further images are the set's with other noise."""
    generator = torch.Generator().manual_seed(0)
    models = {"anoclip": make_model("anoclip", None).set_object("surface")}
    models |= {search: make_model("mutual", None, search).set_object("surface") for search in SEARCHES}
    total: dict[str, float] = {}
    for name, model in models.items():
        started = time.perf_counter()
        if model.uses_sets:
            models[name] = model = model.fit_set(model.encode(images))
        for batch in images.split(BATCH):
            model(batch)
        total[name] = time.perf_counter() - started
    rows, done, timed = [], len(images), dict.fromkeys(models, 0)
    further = dict.fromkeys(models, 0.0)
    for number in range((max(counts) - done) // BATCH + 1):
        if done in counts:
            each = {
                name: (total[name] + further[name] / max(timed[name], 1) * (done - len(images))) / done
                for name in models
            }
            ratios = {f"ratio_{name}": each[name] / each["anoclip"] for name in SEARCHES}
            rows.append({"images": done, **each, **ratios})
            print(json.dumps(rows[-1]), flush=True)
        start = number * BATCH % len(images)
        batch = images[start : start + BATCH]
        batch = batch + 0.02 * torch.randn(batch.shape, generator=generator)
        for name, model in models.items():
            if name != "exact" or number % EXACT_EVERY == 0:
                further[name] += seconds(partial(model, batch))
                timed[name] += len(batch)
        done += len(batch)
    return rows


def tables(found: dict[str, Any]) -> str:
    """Return the page's tables."""
    out = [
        "| data | weights | images | AUPRO exact | fast | image AUROC exact | fast |",
        "|---|---|---:|" + "---:|" * 4,
    ]
    out += [
        f"| {r['data']}, {r['object']} | {r['weights']} | {r['images']} | {r['aupro_exact']:.3f}"
        f" | {r['aupro_fast']:.3f} | {r['auroc_exact']:.3f} | {r['auroc_fast']:.3f} |"
        for r in found["accuracy"]
    ]
    for key, title in (("sets", "a set of n images"), ("runs", "a run of n images, set of 128")):
        out += ["", f"| {title} | AnoCLIP, ms an image | exact | fast | exact ÷ AnoCLIP | fast ÷ AnoCLIP |"]
        out.append("|---:|" + "---:|" * 5)
        out += [
            f"| {r['images']} | {1000 * r['anoclip']:.0f} | {1000 * r['exact']:.0f} | {1000 * r['fast']:.0f}"
            f" | {r['ratio_exact']:.2f} | {r['ratio_fast']:.2f} |"
            for r in found[key]
        ]
    made = ", ".join(f"{key}: {value}" for key, value in found["about"].items())
    return "\n".join([*out, "", made])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--page", type=Path, help="documentation page whose tables are replaced")
    parser.add_argument("--data", type=Path, help="folder with magnetic_tile/ and deep_pcb/")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[128, 512, 2048], help="multiples of 8 from 128"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--products", type=int, default=3, help="rendered products of 128 images each")
    arguments = parser.parse_args()
    model = make_model("anoclip", None)
    size = model.backbone.image_size
    sets = [replace(one, data="rendered") for one in rendered(size, arguments.products, max(arguments.sizes))]
    images = tensors(sets[0], model)
    if arguments.data is not None:
        reader = ImageLoader(ResizeSpec(size))
        sets.append(magnetic_tile(arguments.data / "magnetic_tile", reader, defective=16, good=48))
        sets.append(next(iter(deep_pcb(arguments.data / "deep_pcb", reader, pairs=24))))
    found: dict[str, Any] = {
        "about": {
            **provenance("python benchmarks/set_speed.py"),
            "model": f"tiny at {size} px",
            "batch": BATCH,
        },
        "sets": cost_of_sets(images, arguments.sizes, arguments.repeats),
        "runs": cost_of_runs(images[:128], arguments.runs),
        "accuracy": accuracy(sets, None, arguments.sizes) + accuracy(sets, "random", arguments.sizes[-1:]),
    }
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, tables(found))


if __name__ == "__main__":
    main()
