"""Measure the accuracy of methods × weights on real images and rendered held-out scenes, with a random control.

    python benchmarks/accuracy.py --data data --out runs/accuracy

prints a table and writes ``accuracy.json`` and ``accuracy.md``. The README of ``--data`` describes the data sets;
missing folders are skipped. These images are never used for tuning, only for reports.

"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import clipspect
from clipspect.backbones.presets import PRESETS
from clipspect.benchmark.accumulator import Accumulator
from clipspect.benchmark.datasets import load_categories
from clipspect.benchmark.provenance import provenance
from clipspect.benchmark.samples import Category, Sample
from clipspect.registry import list_methods, make_method, method_class
from clipspect.training.demo_images import render_image
from clipspect.training.render import DEFECTS, HELD_OUT, Canvas, draw_scenes
from pages import replace_between

GOOD = "good"
START, END = "<!-- figures: benchmarks/accuracy.py -->", "<!-- end of figures -->"
SHOTS = 4
"""Good images that methods get which need references."""
_RENDERED_SEED = 20_240
_RENDERED_SIDE = 256


@dataclass(frozen=True)
class DataSet:
    """Images to score."""

    name: str
    categories: Sequence[Category]
    """Images by object name; metrics are over all of them."""
    templates: Callable[[Path], Path] | None = None
    """Function that returns an image's reference; only methods that use one are run then."""

    def fits(self, method: str) -> bool:
        """Return whether to run a method on these images: methods that compare images need one product."""
        if self.templates:
            return method.startswith("dual-image")  # methods that take one reference per image
        compares = make_method(method).scope == "set" or method_class(method).needs_references
        return len(self.categories) == 1 or not compares


@dataclass(frozen=True)
class Row:
    """Line of the table."""

    data: str
    defect: str
    method: str
    weights: str
    image_size: int
    images: int
    pixel_auroc: float | None
    aupro: float | None
    pixel_ap: float | None
    image_auroc: float | None
    image_ap: float | None
    f1_max: float | None
    """Of pixels."""


ALL = [name for name in list_methods() if not method_class(name).needs_file]
"""Every method but ``anomaly-clip``, which needs the official checkpoint of a large model."""
SHOWN = ("pixel_auroc", "aupro", "pixel_ap", "image_auroc", "image_ap", "pixel_f1max")


def magnetic_tile(data: Path) -> DataSet:
    """Return images of magnetic tiles with five kinds of defects."""
    return DataSet("magnetic_tile", load_categories("folder", data / "magnetic_tile"))


def deep_pcb(data: Path) -> DataSet:
    """Return scans of bare circuit boards; their defect-free templates count as the good images."""
    (boards,) = load_categories("folder", data / "deep_pcb", object="printed circuit board")
    good = [Sample(path, GOOD, False) for path in boards.train]
    return DataSet("deep_pcb", [replace(boards, samples=[*boards.samples, *good])])


def deep_pcb_pairs(data: Path) -> DataSet:
    """Return the same scans, each with its own template as the reference."""
    boards = load_categories("folder", data / "deep_pcb", object="printed circuit board")
    reference = data / "deep_pcb" / "reference"
    return DataSet("deep_pcb, own template", boards, lambda path: reference / path.name)


def thinned(data: DataSet, every: int) -> DataSet:
    """Return the set with every ``every``-th image of each category."""
    if every == 1:
        return data
    kept = [replace(category, samples=list(category.samples)[::every]) for category in data.categories]
    return replace(data, name=f"{data.name}, 1 of {every}", categories=kept)


def rendered(folder: Path, scenes: int) -> DataSet:
    """Render scenes of kinds the tiny model was never trained on; good and defective images show different scenes."""
    canvas = Canvas(_RENDERED_SIDE, _RENDERED_SEED)
    by_noun: dict[str, list[Sample]] = {}
    for start in range(0, scenes, 32):
        batch = draw_scenes(canvas, min(32, scenes - start), HELD_OUT)
        for row, object_name in enumerate(batch.nouns):
            number = start + row
            path, mask = folder / f"{number:04d}.png", folder / f"{number:04d}_mask.png"
            samples = by_noun.setdefault(object_name, [])
            if number % 2:
                _save(path, batch.clean[row].permute(1, 2, 0).numpy())
                samples.append(Sample(path, GOOD, False))
            elif batch.mask[row].any():
                _save(path, batch.defective[row].permute(1, 2, 0).numpy())
                _save(mask, batch.mask[row].numpy())
                samples.append(Sample(path, batch.defects[row], True, mask))
    return DataSet("rendered, held out", [Category(n, n, s) for n, s in by_noun.items() if s])


def rendered_brackets(folder: Path, each: int) -> DataSet:
    """Render one product, like the demo's: ``each`` images of every kind of defect, and as many good ones."""
    samples: list[Sample] = []
    for number, kind in enumerate([*DEFECTS] * each + [GOOD] * (len(DEFECTS) * each)):
        picture, mask = render_image(kind, _RENDERED_SEED + number)
        path, mask_path = folder / f"bracket-{number:04d}.png", folder / f"bracket-{number:04d}_mask.png"
        if kind == GOOD or mask.any():
            _save(path, picture.permute(1, 2, 0).numpy())
            _save(mask_path, mask.numpy())
            samples.append(Sample(path, kind, kind != GOOD, None if kind == GOOD else mask_path))
    return DataSet("rendered brackets", [Category("brackets", "metal bracket", samples)])


def _save(path: Path, picture: NDArray[np.float32]) -> None:
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)


def measure(
    data: DataSet, methods: Sequence[str], weights: str | None, image_size: int | None
) -> Iterator[Row]:
    """Score every image with all methods; return one row per method and kind of defect.

    Methods that need references get :data:`SHOTS` good images, which are left out of their figures.
    """
    few = [name for name in methods if method_class(name).needs_references]
    for group in (few, [name for name in methods if name not in few]):
        if group:
            yield from _measure_group(data, group, weights, image_size, SHOTS if group is few else 0)


def _measure_group(
    data: DataSet, methods: Sequence[str], weights: str | None, image_size: int | None, shots: int
) -> Iterator[Row]:
    other = weights is not None and (weights in PRESETS or Path(weights).is_dir())
    model, own = (weights, None) if other else ("tiny", weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = clipspect.load(list(methods), model=model, weights=own, image_size=image_size)
    kinds = sorted({s.kind for category in data.categories for s in category.samples} - {GOOD})
    tallies = {name: {kind: Accumulator("photo") for kind in ("all", *kinds)} for name in methods}
    for category in data.categories:
        shown = [sample.path for sample in category.samples if not sample.defective][:shots]
        references = detector.encode_references(shown) if shown else None
        samples = {sample.path: sample for sample in category.samples if sample.path not in shown}
        found = detector.stream(
            list(samples), object=category.object, templates=data.templates, references=references
        )
        for path, detection in zip((p for p in samples for _ in methods), found, strict=True):
            if detection.error is not None:
                raise clipspect.ImageError(detection.path, detection.error)
            for kind, tally in tallies[detection.method].items():
                if kind in ("all", samples[path].kind) or not samples[path].defective:
                    tally.add(samples[path], detection)
    for name in methods:
        for kind, tally in tallies[name].items():
            figures = tally.figures()
            yield Row(
                data.name,
                kind,
                name,
                weights or "trained",
                detector.backbone.image_size,
                figures.images,
                *(figures.values[metric] for metric in SHOWN),
            )


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return the table and its provenance."""
    columns = ["data", "defect", "method", "weights", "px", "photos", "pixel AUROC", "AUPRO@0.3", "pixel AP"]
    columns += ["image AUROC", "image AP"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        figures = (row.pixel_auroc, row.aupro, row.pixel_ap, row.image_auroc, row.image_ap)
        cells = [row.data, row.defect, row.method, row.weights, str(row.image_size), str(row.images)]
        cells += [_figure(value) for value in figures]
        lines.append(f"| {' | '.join(cells)} |")
    made = ", ".join(f"{key}: {value}" for key, value in about.items())
    return "\n".join(lines) + f"\n\n{made}\n"


def compact(rows: Sequence[Row]) -> str:
    """Return a line per data set, kind of defect and method, with a column per weights and three values per cell."""
    weights = list(dict.fromkeys(row.weights for row in rows))
    lines = [f"| data | defect | method | {' | '.join(weights)} |", "|---|---|---|" + "---|" * len(weights)]
    cells = {(row.data, row.defect, row.method, row.weights): row for row in rows}
    for data, defect, method in dict.fromkeys(key[:3] for key in cells):
        found = [cells.get((data, defect, method, one)) for one in weights]
        shown = [
            " / ".join(_figure(v).replace("0.", ".", 1) for v in (r.pixel_auroc, r.aupro, r.image_auroc))
            if r
            else ""
            for r in found
        ]
        lines.append(f"| {data} | {defect} | `{method}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, required=True, help="folder for accuracy.json and accuracy.md")
    parser.add_argument("--methods", nargs="+", default=["anoclip", "dual-image"], help="names, or all")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=["trained", "random"],
        help="trained, random, a file, another model's name or its folder",
    )
    parser.add_argument("--page", type=Path, help="page whose table between the markers is replaced")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--rendered", type=int, default=240, help="held-out scenes to render")
    parser.add_argument("--only", nargs="+", help="names of the sets to score; default: all")
    parser.add_argument("--every", type=int, default=1, help="use every N-th image of each set")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        sets = [
            rendered(Path(temporary), arguments.rendered),
            rendered_brackets(Path(temporary), max(1, arguments.rendered // 80)),
        ]
        if (arguments.data / "magnetic_tile").is_dir():
            sets.append(magnetic_tile(arguments.data))
        if (arguments.data / "deep_pcb").is_dir():
            sets += [deep_pcb(arguments.data), deep_pcb_pairs(arguments.data)]
        for data in sets:
            if arguments.only and data.name not in arguments.only:
                continue
            data = thinned(data, arguments.every)
            named = arguments.methods if arguments.methods != ["all"] else ALL
            methods = [method for method in named if data.fits(method)]
            for weights in arguments.weights if methods else ():
                own = None if weights == "trained" else weights
                for row in measure(data, methods, own, arguments.image_size):
                    rows.append(row)
                    shown = " / ".join(_figure(v) for v in (row.pixel_auroc, row.aupro, row.image_auroc))
                    print(
                        f"{row.data:24s} {row.defect:16s} {row.method:12s} {row.weights:8s} {shown}",
                        flush=True,
                    )
    about = provenance("python benchmarks/accuracy.py")
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = {"about": about, "rows": [asdict(row) for row in rows]}
    (arguments.out / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")
    (arguments.out / "accuracy.md").write_text(markdown(rows, about))
    if arguments.page:
        made = ", ".join(f"{key}: {value}" for key, value in about.items())
        replace_between(arguments.page, START, END, f"{compact(rows)}\n\n{made}")


if __name__ == "__main__":
    main()
