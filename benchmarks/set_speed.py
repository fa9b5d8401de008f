"""Compare exact and fast search: accuracy on the same sets, and cost per image relative to AnoCLIP.

    python benchmarks/set_speed.py --out benchmarks/results/set_speed.json --page docs/speed.md --data data

Accuracy: AUPRO and image AUROC of both on rendered products, and on real images where ``--data`` has them, with a
control under random weights. Cost: processor time of one thread, for images in memory, so that other load on the
machine counts little; the methods take turns. A run of n images is a set of at most ``--set-size`` images, which serve
as references, and further images. The cost of a further image does not depend on n. ``references`` compares
``dual-image`` and ``anomaly-dino`` with known-good images: cost by their number, and accuracy with 60 of them.

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
from torch.nn import functional as F

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


def make_model(method: str, weights: str | None, search: str | None = None) -> AnomalyModel:
    """Return the model of a method with the offline backbone."""
    settings = {} if search is None else {"settings": {"search": search}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clipspect.load(method, weights=weights, batch_size=BATCH, **settings).model


def tensors(pictures: PictureSet, model: AnomalyModel) -> torch.Tensor:
    """(N, 3, S, S) normalized images of a set."""
    return torch.from_numpy(normalize(pictures.pieces, model.backbone.mean, model.backbone.std))


def accuracy(sets: Sequence[PictureSet], weights: str | None, largest: int) -> list[dict[str, Any]]:
    """Return AUPRO and image AUROC of exact and fast scoring per set of at most ``largest`` images."""
    models = {search: make_model("mutual", weights, search) for search in SEARCHES}
    rows: list[dict[str, Any]] = []
    for pictures in sets:
        images = tensors(pictures, models["exact"])
        encoded = models["exact"].encode(images)
        # Evenly spread, so that each kind of defect is in the sample.
        size = min(largest, len(images))
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
    """Return the seconds of one processor that a call takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.inference_mode()
def costs(images: torch.Tensor, sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return processor seconds per image for each set size: medians of the repeats, in turns.

    ``exact`` and ``fast`` are an image of the set: encoding, its share of the comparison, and scores. ``further_exact``
    and ``further_fast`` are an image beyond the set.
    """
    anoclip = make_model("anoclip", None).set_object("surface")
    models = {search: make_model("mutual", None, search).set_object("surface") for search in SEARCHES}
    generator = torch.Generator().manual_seed(0)
    rows = []
    for size in sizes:
        pool, times = models["exact"].encode(images[:size]), defaultdict(list)
        for number in range(repeats):
            batch = images[number * BATCH :][:BATCH]
            further = batch + 0.02 * torch.randn(batch.shape, generator=generator)
            times["anoclip"].append(seconds(partial(anoclip, further)) / BATCH)
            for name, model in models.items():
                encoding = seconds(partial(model.encode, further)) / BATCH
                started = time.process_time()
                fitted = model.fit_set(pool)
                fitting = (time.process_time() - started) / size
                scoring = seconds(partial(fitted, batch)) / BATCH
                times[name].append(encoding + fitting + scoring)
                times[f"further_{name}"].append(seconds(partial(fitted, further)) / BATCH)
        row: dict[str, Any] = {"images": size}
        row |= {name: float(np.median(each)) for name, each in times.items()}
        row |= {
            f"ratio_{name}": float(np.median(np.divide(each, times["anoclip"])))
            for name, each in times.items()
            if name != "anoclip"
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def with_good(model: AnomalyModel, images: torch.Tensor) -> AnomalyModel:
    """Return the model with known-good images as references."""
    encoded = model.encode(images)
    return model.set_references(encoded.features).fit_set(encoded)


@torch.inference_mode()
def with_references(
    sets: Sequence[PictureSet], counts: Sequence[int], good: int, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Return cost per image by the number of known-good images, and accuracy with ``good`` of them."""
    anoclip = make_model("anoclip", None).set_object("surface")
    costs, accuracies = [], []
    for method in ("dual-image", "anomaly-dino"):
        models = {search: make_model(method, None, search).set_object("surface") for search in SEARCHES}
        for pictures in sets:
            images = tensors(pictures, anoclip)
            clean = (~pictures.masks.any((1, 2))).nonzero()[0].tolist()
            rest = [i for i in range(len(images)) if i not in clean[:good]]
            masks = pictures.masks[rest]
            row: dict[str, Any] = {
                "method": method,
                "object": pictures.object,
                "references": len(clean[:good]),
            }
            for search, model in models.items():
                fitted = with_good(model, images[clean[:good]])
                scores = [fitted(images[rest[i : i + BATCH]])[method] for i in range(0, len(rest), BATCH)]
                maps = F.adaptive_avg_pool2d(torch.cat([s.map for s in scores])[:, None], MASK_SIDE)[:, 0]
                image = torch.cat([s.image for s in scores])
                row[f"aupro_{search}"] = pixel_metrics(list(masks), list(maps.numpy())).aupro
                row[f"auroc_{search}"] = image_metrics(masks.any((1, 2)), image.numpy()).auroc
            accuracies.append(row)
            print(json.dumps(row), flush=True)
        images = tensors(sets[0], anoclip)
        for count in counts:
            row = {"method": method, "references": count}
            fitted = {search: with_good(model, images[:count]) for search, model in models.items()}
            batch, times = images[-BATCH:], defaultdict(list)
            for _ in range(repeats + 1):  # the first round is not counted
                for name, model in {"anoclip": anoclip, **fitted}.items():
                    times[name].append(seconds(partial(model, batch)) / BATCH)
            row |= {name: float(np.median(each[1:])) for name, each in times.items()}
            costs.append(row)
            print(json.dumps(row), flush=True)
    return {"costs": costs, "accuracy": accuracies}


def tables(found: dict[str, Any]) -> str:
    """Return the page's tables."""
    out = [
        "| data | weights | images | AUPRO exact | fast | image AUROC exact | fast |",
        "|---|---|---:|" + "---:|" * 4,
    ]
    out += [
        f"| {r['data']}, {r['object']} | {r['weights']} | {r['images']} | {_agreement(r)} |"
        for r in found.get("accuracy", [])
    ]
    out += [
        "",
        "| images in the set | AnoCLIP, ms an image | exact | fast | exact, further image | fast, further image |",
    ]
    out.append("|---:|" + "---:|" * 5)
    out += [
        f"| {r['images']} | {1000 * r['anoclip']:.0f} | {_cell(r, 'exact')} | {_cell(r, 'fast')}"
        f" | {_cell(r, 'further_exact')} | {_cell(r, 'further_fast')} |"
        for r in found.get("costs", [])
    ]
    known = found.get("references", {})
    out += [
        "",
        "| method | known-good images | data | AUPRO exact | fast | image AUROC exact | fast |",
        "|---|---:|---|" + "---:|" * 4,
    ]
    out += [
        f"| {r['method']} | {r['references']} | rendered, {r['object']} | {_agreement(r)} |"
        for r in known.get("accuracy", [])
    ]
    out += [
        "",
        "| method | known-good images | exact, times AnoCLIP | fast, times AnoCLIP |",
        "|---|---:|---:|---:|",
    ]
    out += [
        f"| {r['method']} | {r['references']} | {r['exact'] / r['anoclip']:.2f} | {r['fast'] / r['anoclip']:.2f} |"
        for r in known.get("costs", [])
    ]
    made = ", ".join(f"{key}: {value}" for key, value in found["about"].items())
    return "\n".join([*out, "", made])


def _agreement(row: dict[str, Any]) -> str:
    figures = (row[f"{metric}_{search}"] for metric in ("aupro", "auroc") for search in SEARCHES)
    return " | ".join(f"{figure:.3f}" for figure in figures)


def _cell(row: dict[str, Any], name: str) -> str:
    return f"{1000 * row[name]:.0f} ({row[f'ratio_{name}']:.2f} ×)"


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
        "--accuracy-images", type=int, default=128, help="images of a set in the accuracy table"
    )
    parser.add_argument(
        "--only",
        choices=("costs", "accuracy", "references"),
        help="measure this and keep the rest of the file",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--products", type=int, default=3, help="rendered products of 128 images each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model("anoclip", None)
    size = model.backbone.image_size
    count = max(*arguments.sizes, arguments.accuracy_images)
    sets = [replace(one, data="rendered") for one in rendered(size, arguments.products, count)]
    images = tensors(sets[0], model)
    if arguments.data is not None:
        reader = ImageLoader(ResizeSpec(size))
        sets.append(magnetic_tile(arguments.data / "magnetic_tile", reader, defective=16, good=48))
        sets.append(next(iter(deep_pcb(arguments.data / "deep_pcb", reader, pairs=24))))
    found: dict[str, Any] = (
        json.loads(arguments.out.read_text(encoding="utf-8"))
        if arguments.only and arguments.out.is_file()
        else {}
    )
    about = provenance("python benchmarks/set_speed.py")
    if found:
        found["about"][arguments.only] = f"{about['command']} ({about['date']})"
    else:
        found["about"] = {**about, "model": f"tiny at {size} px", "batch": BATCH}
    if arguments.only in (None, "references"):
        found["references"] = with_references(sets[: arguments.products], (4, 33, 64), 60, arguments.repeats)
    if arguments.only in (None, "costs"):
        found["costs"] = costs(images, arguments.sizes, arguments.repeats)
    if arguments.only in (None, "accuracy"):
        found["accuracy"] = [
            row for weights in (None, "random") for row in accuracy(sets, weights, arguments.accuracy_images)
        ]
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, tables(found))


if __name__ == "__main__":
    main()
