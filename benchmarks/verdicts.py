"""Measure verdicts from known-good images: promised and realized false-alarm rates, recall, pointing and box overlap.

    python benchmarks/verdicts.py --out benchmarks/results/verdicts.json --page docs/calibration.md
    python benchmarks/verdicts.py --rendered 0 0 --folder parts/ --object part …    # MVTec AD layout

Each image is encoded once, and each pair of images is compared once (``recalled.py``; the first resample of every row
is checked against the method itself). Per resample, n good images calibrate, and are the references of methods that
compare images. The other good images and all defective ones are scored. Random weights are the control.

"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import clipspect
from clipspect.backbones.sources import Sources
from clipspect.benchmark.masks import read_mask
from clipspect.benchmark.provenance import provenance
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.detector import Detector
from clipspect.methods.dual_image import DualImage
from clipspect.model import Encoded
from clipspect.postprocess.calibration import calibrate_good
from clipspect.postprocess.regions import find_regions
from clipspect.postprocess.verdict import verdict_of
from clipspect.tensors import image_tensor, make_detections
from clipspect.training.demo_images import as_pixels, render_image
from pages import replace_between
from recalled import Recalled

COUNTS = (3, 5, 10, 20, 40)
RATES = (0.01, 0.05, 0.10)
KINDS = ("scratch", "crack", "hole", "pits", "stain", "broken edge", "fibre")


@dataclass(frozen=True)
class ImageSet:
    """Good and defective images of one product as arrays (H, W, 3), with the masks of the defective ones."""

    name: str
    object: str
    good: Sequence[NDArray[np.uint8]]
    defective: Sequence[NDArray[np.uint8]]
    masks: Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Result:
    """Means over resamples for one set, method, number of good images and promised rate."""

    set: str
    method: str
    weights: str
    good: int
    promised: float
    realized: float
    recall: float
    flagged_without_region: int
    pointing: float
    box_iou: float
    resamples: int


def rendered_brackets(good: int, defective: int) -> ImageSet:
    """Render brackets of the demo's product with seeds that the demo does not use."""
    clean = [as_pixels(render_image("good", 1000 + i)[0]) for i in range(good)]
    pairs = [render_image(KINDS[i % len(KINDS)], 2000 + i) for i in range(defective)]
    return ImageSet(
        "rendered brackets",
        "metal bracket",
        clean,
        [as_pixels(p) for p, _ in pairs],
        [m.numpy() > 0.5 for _, m in pairs],
    )


def folder_set(root: Path, object_name: str, limit: int) -> ImageSet:
    """Read a folder in MVTec AD's layout: test/good, test/KIND, ground_truth/KIND."""
    names = sorted((root / "test").glob("*/*"))
    rng = np.random.default_rng(0)
    good = [p for p in names if p.parent.name == "good"]
    bad = [p for p in names if p.parent.name != "good"]
    good = [good[i] for i in sorted(rng.permutation(len(good))[:limit])]
    bad = [bad[i] for i in sorted(rng.permutation(len(bad))[:limit])]
    masks = []
    images = [clipspect.read_image(path) for path in bad]
    for path, image in zip(bad, images, strict=True):
        found = next((root / "ground_truth" / path.parent.name).glob(f"{path.stem}*"))
        masks.append(read_mask(found, *image.shape[:2]).pixels)
    return ImageSet(root.name, object_name, [clipspect.read_image(p) for p in good], images, masks)


def measure(images: ImageSet, detector: Detector, weights: str, resamples: int, drawn: int) -> list[Result]:
    """Apply verdicts with resampled known-good images; draw regions in the first ``drawn`` resamples."""
    (method,) = detector.methods
    model = detector.model.set_object(images.object)
    loaded = [detector.reader.read(one, f"{n}") for n, one in enumerate([*images.good, *images.defective])]
    tensor = image_tensor(loaded, detector.backbone)
    everything = model.encode(tensor, Sources.of_tensors(tensor))
    plain = model
    if type(method) is DualImage:
        recalled = Recalled.remember(method, model, everything, len(images.good))
        model = replace(model, methods=(recalled,))
    results: list[Result] = []
    rng = np.random.default_rng(1)
    alone = _detections(detector, model, everything, loaded) if method.scope == "image" else None
    for count in (n for n in COUNTS if n <= len(images.good) - 10):
        rounds: dict[float, list[tuple[float, float, int, float, float]]] = {rate: [] for rate in RATES}
        for turn in range(resamples):
            chosen = sorted(rng.permutation(len(images.good))[:count].tolist())
            found = alone
            if found is None:
                pool = everything[chosen]
                fitted = model.set_references(pool.features).fit_set(pool)
                found = _detections(detector, fitted, everything, loaded)
                if turn == 0 and model is not plain:
                    fitted = plain.set_references(pool.features).fit_set(pool)
                    _check_equal(_detections(detector, fitted, everything, loaded), found)
            for rate in RATES:
                rounds[rate].append(_judge(images, found, chosen, rate, turn < drawn))
        for rate, rows in rounds.items():
            means = np.nanmean(np.array(rows, float), 0)
            results.append(
                Result(
                    images.name, method.name, weights, count, rate, round(float(means[0]), 4),
                    round(float(means[1]), 4), int(sum(row[2] for row in rows)), round(float(means[3]), 4),
                    round(float(means[4]), 4), resamples,
                )
            )  # fmt: skip
            print(results[-1], flush=True)
    return results


def _check_equal(expected: Sequence[Any], found: Sequence[Any]) -> None:
    """Compare looked-up results with those of the method itself; raises AssertionError."""
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other.compact_layers, one.compact_layers, atol=1e-3)
        np.testing.assert_allclose(other.class_logit, one.class_logit, atol=1e-4)


def _detections(detector: Detector, model: Any, everything: Encoded, loaded: Sequence[Any]) -> list[Any]:
    from clipspect.data.loader import LoadedImage

    places = model._pool_rows
    assert everything.features.sources is not None
    index = [places.get(key, -1) for key in everything.features.sources.keys]
    found: list[Any] = []
    for start in range(0, len(loaded), 16):
        rows = list(range(start, min(start + 16, len(loaded))))
        part = everything[rows]
        with torch.inference_mode():
            scores = model.score(part.features, part.images, pool_index=[index[i] for i in rows])
        batch = [LoadedImage(i, str(i), loaded[i]) for i in rows]
        found += make_detections(batch, scores, 0.0, model, detector.reader, {})
    return found


def _judge(
    images: ImageSet, found: Sequence[Any], chosen: Sequence[int], rate: float, draw: bool
) -> tuple[float, float, int, float, float]:
    """Return false alarms, recall, flagged images without a region, pointing and box IoU of one resample."""
    calibration = calibrate_good([found[i].summary for i in chosen], rate)
    count = len(images.good)
    alarms: list[bool] = []
    hits: list[bool] = []
    bare = 0
    points: list[bool] = []
    overlaps: list[float] = []
    for number, one in enumerate(found):
        if number in chosen:
            continue
        score = float(calibration.probability(calibration.peak(one.summary)))
        flagged = verdict_of(calibration, score) == "flagged"
        (alarms if number < count else hits).append(flagged)
        if not flagged or not draw:
            continue
        values = calibration.map(one.compact_layers, one.class_logit)
        regions = find_regions(values, calibration, one.height, one.width)
        bare += not regions
        if number >= count and regions:
            mask = images.masks[number - count]
            near = _dilated(mask, one.width // 32)
            points.append(bool(near[regions[0].peak_y, regions[0].peak_x]))
            boxes = np.zeros(mask.shape, bool)
            for r in regions:
                boxes[r.top : r.top + r.height, r.left : r.left + r.width] = True
            truth = _boxes_of(mask)
            overlaps.append(float((boxes & truth).sum() / max((boxes | truth).sum(), 1)))
    nan = float("nan")
    mean = lambda values: float(np.mean(values)) if values else nan  # noqa: E731
    return mean(alarms), mean(hits), bare, mean(points), mean(overlaps)


def _dilated(mask: NDArray[np.bool_], cells: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(mask, iterations=max(cells, 1)))


def _boxes_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    boxes = np.zeros(mask.shape, bool)
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    for where in ndimage.find_objects(labels):
        boxes[where] = True
    return boxes


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table of the results."""
    lines = [
        "| set | method | weights | good images | promised | realized | recall | pointing | box IoU |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        numbers = (r.realized, r.recall, r.pointing, r.box_iou)
        cells = " | ".join("–" if np.isnan(value) else f"{value:.2f}" for value in numbers)
        lines.append(f"| {r.set} | `{r.method}` | {r.weights} | {r.good} | {r.promised:.0%} | {cells} |")
    return "\n".join(lines)


def write_page(arguments: argparse.Namespace, results: Sequence[Result], text: str) -> None:
    """Replace the table of a document, where one is named."""
    if arguments.page:
        rows = [r for r in results if arguments.page_rate in (None, r.promised)]
        marker = arguments.marker
        whole = f"{table(rows)}\n\n{text}"
        replace_between(arguments.page, f"<!-- {marker} -->", f"<!-- end of {marker} -->", whole)


def main() -> None:
    """Measure, print, and write JSON and the table of a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--methods", nargs="*", default=["anoclip", "dual-image"])
    parser.add_argument("--rendered", type=int, nargs=2, default=(60, 42), metavar=("GOOD", "DEFECTIVE"))
    parser.add_argument(
        "--folder", type=Path, action="append", default=[], help="folder in MVTec AD's layout; repeatable"
    )
    parser.add_argument("--object", default="part", help="what the folders show")
    parser.add_argument(
        "--limit", type=int, default=60, help="maximum number of good and of defective images of a folder"
    )
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument(
        "--drawn", type=int, default=20, help="resamples whose regions are drawn and measured"
    )
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=None, help="document whose table is replaced")
    parser.add_argument("--marker", default="verdicts", help="name of the table's place in --page")
    parser.add_argument(
        "--page-rate", type=float, default=None, help="only the rows of this rate on the page"
    )
    parser.add_argument("--read", type=Path, default=None, help="results of --out, to write the page again")
    arguments = parser.parse_args()
    if arguments.read:
        stored = json.loads(arguments.read.read_text(encoding="utf-8"))
        kept = [Result(**one) for one in stored["results"]]
        write_page(arguments, kept, stored["text"])
        return
    sets = [rendered_brackets(*arguments.rendered)] if arguments.rendered[0] else []
    sets += [folder_set(root, arguments.object, arguments.limit) for root in arguments.folder]
    results: list[Result] = []
    for weights in ("trained", "random"):
        for name in arguments.methods:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                detector = clipspect.load(
                    name,
                    arguments.model,
                    None if weights == "trained" else weights,
                    image_size=arguments.image_size,
                )
            detector = Detector(detector.model, ImageLoader(ResizeSpec(detector.backbone.image_size)))
            for images in sets:
                results += measure(images, detector, weights, arguments.resamples, arguments.drawn)
    bare = sum(r.flagged_without_region for r in results)
    text = f"Flagged images without a region: {bare}. Resamples: {arguments.resamples}; regions are drawn in the first"
    stamp = provenance()
    size = arguments.image_size or "as the model's"
    text += (
        f" {arguments.drawn}. Image size {size}. {stamp['machine']}, {stamp['date']}: `{stamp['command']}`."
    )
    print(table(results), text, sep="\n\n")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({**stamp, "text": text, "results": [asdict(r) for r in results]}, indent=1)
        )
    write_page(arguments, results, text)


if __name__ == "__main__":
    main()
