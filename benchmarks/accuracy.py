"""Accuracy of methods × weights on real photographs and on rendered held-out scenes, beside a random control.

    python benchmarks/accuracy.py --data ../shared/data --out runs/accuracy

prints a table and writes ``accuracy.json`` and ``accuracy.md``. The data sets are described by ``--data``'s README;
a folder that is absent is left out. Nothing here is ever tuned on: the figures are for reports.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import clipspect
from clipspect.evaluation.metrics import image_metrics, pixel_metrics
from clipspect.evaluation.provenance import provenance
from clipspect.methods import make_method
from clipspect.training.demo_photos import photograph
from clipspect.training.render import DEFECTS, HELD_OUT, Canvas, draw_scenes

GOOD = "good"
_RENDERED_SEED = 20_240
_RENDERED_SIDE = 256


@dataclass(frozen=True)
class Sample:
    """One photograph with its ground truth."""

    path: Path
    object: str
    defect: str
    """The defect's class, or "good"."""
    mask: Path | None


@dataclass(frozen=True)
class DataSet:
    """Photographs to score."""

    name: str
    samples: Sequence[Sample]
    one_product: bool = True
    """Whether they show one product, so that methods that compare photographs with each other make sense."""
    templates: Callable[[Path], Path] | None = None
    """Gives each photograph's own reference; only methods that take one are run then."""

    def fits(self, method: str) -> bool:
        """Whether a method is to be run on these photographs."""
        compares = make_method(method).scope == "set"
        return compares if self.templates else self.one_product or not compares


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    data: str
    defect: str
    method: str
    weights: str
    image_size: int
    photographs: int
    pixel_auroc: float
    aupro: float
    pixel_ap: float
    image_auroc: float
    image_ap: float
    f1_max: float = field(default=float("nan"))


def magnetic_tile(data: Path) -> DataSet:
    """Photographs of magnetic tiles with five kinds of defects."""
    folder = data / "magnetic_tile"
    samples = [
        Sample(path, "magnetic tile", path.parent.name, _mask_of(folder, path))
        for path in sorted((folder / "test").glob("*/*"))
    ]
    return DataSet("magnetic_tile", samples)


def deep_pcb(data: Path) -> DataSet:
    """Scans of bare circuit boards; their defect-free templates count as the good photographs."""
    folder, name = data / "deep_pcb", "printed circuit board"
    defective = [
        Sample(p, name, "defect", _mask_of(folder, p)) for p in sorted((folder / "test/defect").glob("*"))
    ]
    good = [Sample(p, name, GOOD, None) for p in sorted((folder / "reference").glob("*"))]
    return DataSet("deep_pcb", defective + good)


def deep_pcb_pairs(data: Path) -> DataSet:
    """The same scans, each with its own template as the reference."""
    folder = data / "deep_pcb"
    samples = [s for s in deep_pcb(data).samples if s.defect != GOOD]
    return DataSet("deep_pcb, own template", samples, templates=lambda path: folder / "reference" / path.name)


def _mask_of(folder: Path, photograph: Path) -> Path | None:
    if photograph.parent.name == GOOD:
        return None
    return folder / "ground_truth" / photograph.parent.name / f"{photograph.stem}_mask.png"


def rendered(folder: Path, scenes: int) -> DataSet:
    """Scenes of kinds the tiny model was never trained on; the good pictures are other scenes than the defective."""
    canvas = Canvas(_RENDERED_SIDE, _RENDERED_SEED)
    samples: list[Sample] = []
    for start in range(0, scenes, 32):
        batch = draw_scenes(canvas, min(32, scenes - start), HELD_OUT)
        for row, noun in enumerate(batch.nouns):
            number = start + row
            path, mask = folder / f"{number:04d}.png", folder / f"{number:04d}_mask.png"
            if number % 2:
                _save(path, batch.clean[row].permute(1, 2, 0).numpy())
                samples.append(Sample(path, noun, GOOD, None))
            elif batch.mask[row].any():
                _save(path, batch.defective[row].permute(1, 2, 0).numpy())
                _save(mask, batch.mask[row].numpy())
                samples.append(Sample(path, noun, batch.defects[row], mask))
    return DataSet("rendered, held out", samples, one_product=False)


def rendered_brackets(folder: Path, each: int) -> DataSet:
    """One product, photographed like the demo's: ``each`` photographs of every kind of defect, as many good."""
    samples: list[Sample] = []
    for number, kind in enumerate([*DEFECTS] * each + [GOOD] * (len(DEFECTS) * each)):
        picture, mask = photograph(kind, _RENDERED_SEED + number)
        path, mask_path = folder / f"bracket-{number:04d}.png", folder / f"bracket-{number:04d}_mask.png"
        if kind == GOOD or mask.any():
            _save(path, picture.permute(1, 2, 0).numpy())
            _save(mask_path, mask.numpy())
            samples.append(Sample(path, "metal bracket", kind, None if kind == GOOD else mask_path))
    return DataSet("rendered brackets", samples)


def _save(path: Path, picture: NDArray[np.float32]) -> None:
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)


def measure(
    data: DataSet, methods: Sequence[str], weights: str | None, image_size: int | None
) -> Iterator[Row]:
    """Score every photograph once with all methods, then one row a method and defect class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = clipspect.load(list(methods), model="tiny", weights=weights, image_size=image_size)
    maps: dict[str, dict[Path, NDArray[np.float32]]] = {name: {} for name in methods}
    scores: dict[str, dict[Path, float]] = {name: {} for name in methods}
    for noun in dict.fromkeys(sample.object for sample in data.samples):
        paths = [sample.path for sample in data.samples if sample.object == noun]
        found = detector.stream(paths, object=noun, templates=data.templates)
        for path, detection in zip((p for p in paths for _ in methods), found, strict=True):
            if detection.error is not None:
                raise clipspect.ImageError(detection.path, detection.error)
            maps[detection.method][path] = detection.anomaly_map
            scores[detection.method][path] = detection.score
    size = detector.backbone.image_size
    for name in methods:
        for defect in ("all", *sorted({s.defect for s in data.samples} - {GOOD})):
            chosen = [s for s in data.samples if defect == "all" or s.defect in (defect, GOOD)]
            pixel = pixel_metrics([_read_mask(s) for s in chosen], [maps[name][s.path] for s in chosen])
            labels = np.array([s.defect != GOOD for s in chosen])
            image = image_metrics(labels, np.array([scores[name][s.path] for s in chosen]))
            yield Row(
                data.name,
                defect,
                name,
                weights or "trained",
                size,
                len(chosen),
                pixel.auroc,
                pixel.aupro,
                pixel.ap,
                image.auroc,
                image.ap,
                pixel.f1_max,
            )


def _read_mask(sample: Sample) -> NDArray[np.bool_]:
    if sample.mask is not None:
        return np.asarray(Image.open(sample.mask).convert("L")) > 127
    with Image.open(sample.path) as picture:
        return np.zeros((picture.height, picture.width), dtype=bool)


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """The table, and under it how it was made."""
    columns = ["data", "defect", "method", "weights", "px", "photos", "pixel AUROC", "AUPRO@0.3", "pixel AP"]
    columns += ["image AUROC", "image AP"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        figures = (row.pixel_auroc, row.aupro, row.pixel_ap, row.image_auroc, row.image_ap)
        cells = [row.data, row.defect, row.method, row.weights, str(row.image_size), str(row.photographs)]
        cells += ["—" if np.isnan(value) else f"{value:.3f}" for value in figures]
        lines.append(f"| {' | '.join(cells)} |")
    made = ", ".join(f"{key}: {value}" for key, value in about.items())
    return "\n".join(lines) + f"\n\n{made}\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, required=True, help="folder for accuracy.json and accuracy.md")
    parser.add_argument("--methods", nargs="+", default=["anoclip", "dual-image"])
    parser.add_argument(
        "--weights", nargs="+", default=["trained", "random"], help="trained, random, or a file"
    )
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--rendered", type=int, default=240, help="held-out scenes to render")
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
            methods = [method for method in arguments.methods if data.fits(method)]
            for weights in arguments.weights if methods else ():
                own = None if weights == "trained" else weights
                for row in measure(data, methods, own, arguments.image_size):
                    rows.append(row)
                    print(
                        f"{row.data:24s} {row.defect:16s} {row.method:12s} {row.weights:8s} pixel {row.pixel_auroc:.3f}"
                        f" aupro {row.aupro:.3f} image {row.image_auroc:.3f}",
                        flush=True,
                    )
    about = provenance("python benchmarks/accuracy.py")
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = {"about": about, "rows": [asdict(row) for row in rows]}
    (arguments.out / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")
    (arguments.out / "accuracy.md").write_text(markdown(rows, about))


if __name__ == "__main__":
    main()
