"""Sweep the adaptation of Dual-Image+ on rendered scenes: what does it change at equal temperature and fusion?

    python benchmarks/dual_image_sweep.py --out runs/dual-image-sweep --page docs/ablations.md

The base is Dual-Image; every row differs from it by the adaptation alone. Settings are chosen on four rendered products
and repeated on four others. ``--data`` adds real images as a check. Every image and every corrupted copy is encoded
once. Writes ``sweep.json`` and ``sweep.md``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ablation_sets import PictureSet, magnetic_tile, rendered
from ablations import Encoded, encode, score
from clipspect.backbones.features import Features
from clipspect.backbones.loader import load_backbone
from clipspect.benchmark.metrics import pixel_metrics
from clipspect.benchmark.provenance import provenance
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.methods.base import MethodContext
from clipspect.methods.dual_image import DualImage
from clipspect.methods.dual_image_plus import DualImagePlus
from pages import replace_between

START, END = "<!-- dual-image sweep -->", "<!-- end of dual-image sweep -->"
PRODUCTS = 4
"""Rendered products that settings are chosen on; as many others repeat the measurement."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
RULES = ("text-change", "distance", "joint")
METRICS = ("pixel AP", "F1-max", "AUPRO", "pixel AUROC")


class CachedCopies(DualImagePlus):
    """Dual-Image+ that encodes the corrupted copies of a batch once for all variants."""

    known: ClassVar[dict[Any, Any]] = {}

    def corrupt(self, features: Features, context: MethodContext) -> Any:
        """Return what :class:`DualImagePlus` returns."""
        key = (self.anomalies, self.copies, features.digest, context.backbone.fingerprint)
        if key not in self.known:
            self.known[key] = super().corrupt(features, context)
        return self.known[key]


@dataclass(frozen=True)
class Row:
    """Metrics of one variant on one group of images: means over its products."""

    variant: str
    group: str
    weights: str
    images: int
    figures: tuple[float, ...]
    """In the order of :data:`METRICS`."""


def variants(*, control: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the variants: label and settings."""
    if control:
        yield "text-change, lr 0.001", {"learning_rate": 1e-3}
        return
    for rule in RULES:
        for rate in RATES:
            yield f"{rule}, lr {rate:g}", {"mask_rule": rule, "learning_rate": rate}
    for epochs in (1, 10, 20):
        yield f"text-change, lr 0.001, {epochs} epochs", {"learning_rate": 1e-3, "epochs": epochs}
    for temperature in (0.02, 0.2, 1.0):
        changed = {"learning_rate": 1e-3, "training_temperature": temperature}
        yield f"text-change, lr 0.001, training temperature {temperature:g}", changed
    for kind in ("cut-paste", "perlin", "noise"):
        yield f"text-change, lr 0.001, {kind}", {"learning_rate": 1e-3, "anomalies": kind}
    for share in (0.25, 1.0):
        yield (
            f"text-change, lr 0.001, adapted share {share:g}",
            {"learning_rate": 1e-3, "adapted_weight": share},
        )


def measure(method: DualImage, sets: Sequence[Encoded], backbone: Any) -> tuple[tuple[float, ...], int]:
    """Return means over the sets, and the number of images."""
    figures, count = [], 0
    for known in sets:
        scores, chosen, _ = score(method, known, backbone, 1)
        pixel = pixel_metrics(list(known.pictures.masks[chosen]), list(scores.map.numpy()))
        figures.append((pixel.ap, pixel.f1_max, pixel.aupro, pixel.auroc))
        count += len(chosen)
    return tuple(float(value) for value in np.mean(figures, 0)), count


def markdown(rows: Sequence[Row]) -> str:
    """Return one table: a line per variant, and per group the change of each metric against Dual-Image."""
    out = []
    for weights in dict.fromkeys(row.weights for row in rows):
        own = [row for row in rows if row.weights == weights]
        groups = list(dict.fromkeys(row.group for row in own))
        base = {row.group: row.figures for row in own if row.variant == "dual-image"}
        out.append(f"| {weights} weights | {' | '.join(groups)} |")
        out.append("|---|" + "---|" * len(groups))
        for variant in dict.fromkeys(row.variant for row in own):
            cells = []
            for group in groups:
                (found,) = [r.figures for r in own if r.variant == variant and r.group == group]
                shown = zip(found, base[group], strict=True)
                signed = [f"{a:.3f}" if variant == "dual-image" else f"{a - b:+.3f}" for a, b in shown]
                cells.append(" / ".join(signed))
            out.append(f"| {variant} | {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out)


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with magnetic_tile/: a check on real images")
    parser.add_argument("--out", type=Path, required=True, help="folder for sweep.json and sweep.md")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    arguments = parser.parse_args()
    started, rows = time.perf_counter(), []
    groups: dict[str, list[PictureSet]] = {}
    for weights in ("trained", "random"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = load_backbone("tiny", None if weights == "trained" else "random", device="cpu")
        if not groups:
            products = list(rendered(backbone.image_size, 2 * PRODUCTS))
            groups = {"rendered, chosen on": products[:PRODUCTS], "rendered, repeated": products[PRODUCTS:]}
            if arguments.data:
                reader = ImageLoader(ResizeSpec(backbone.image_size))
                groups["magnetic tile"] = [magnetic_tile(arguments.data / "magnetic_tile", reader)]
        for group, pictures in groups.items():
            known = [encode(one, backbone) for one in pictures]
            methods: list[tuple[str, DualImage]] = [("dual-image", DualImage())]
            methods += [(label, CachedCopies(**s)) for label, s in variants(control=weights == "random")]
            for label, method in methods:
                figures, count = measure(method, known, backbone)
                rows.append(Row(label, group, weights, count, figures))
                print(f"{time.perf_counter() - started:5.0f} s {weights} {group}: {label}: "
                      + " / ".join(f"{f:.3f}" for f in figures), flush=True)  # fmt: skip
            CachedCopies.known.clear()
    about = {
        **provenance("python benchmarks/dual_image_sweep.py"),
        "images": ", ".join(f"{len(s)} products of {len(s[0].pieces)}" for s in groups.values()),
        "seconds": f"{time.perf_counter() - started:.0f}, on a shared machine",
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = {"about": about, "metrics": METRICS, "rows": [asdict(row) for row in rows]}
    (arguments.out / "sweep.json").write_text(json.dumps(stored, indent=2) + "\n")
    table = f"Cells: {' / '.join(METRICS)}.\n\n{markdown(rows)}\n"
    table += ", ".join(f"{key}: {value}" for key, value in about.items()) + "\n"
    (arguments.out / "sweep.md").write_text(table)
    if arguments.page:
        replace_between(arguments.page, START, END, table.rstrip("\n"))


if __name__ == "__main__":
    main()
