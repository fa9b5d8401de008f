"""Run the papers' ablations with the offline model, and with the same network under random weights.

    python benchmarks/ablations.py --data data --out runs/ablations --page docs/ablations.md

prints the metrics, writes ``ablations.json``, ``ablations.md`` and ``claims.md`` (the values behind each sentence of
the page, for editing its prose), and inserts the tables into the page. Every image is encoded once; all variants of the
methods use the same features. Only samples of the data sets are used, and maps are compared with masks at 128×128. The
metrics compare variants; ``benchmarks/accuracy.py`` measures the methods' accuracy.

"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablation_claims import claims
from ablation_sets import MASK_SIDE, PictureSet, deep_pcb, magnetic_tile, rendered
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.benchmark.provenance import provenance
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec, normalize
from clipspect.methods.base import Method, MethodContext, Scores
from clipspect.methods.fusion import RULES
from clipspect.methods.joint import JointMethod
from clipspect.prompts import load_prompts
from clipspect.prompts.anchors import TextAnchors, encode_anchors
from clipspect.registry import make_method
from pages import replace_between

BATCH = 8
START, END = "<!-- tables -->", "<!-- end of tables -->"
# V-V and ordinary tokens of every block that a variant uses.
REQUEST = FeatureRequest(
    value_blocks=frozenset([-1]),
    ordinary_blocks=frozenset([-1]),
    value_spans=frozenset([(0.25, 1.0)]),
    ordinary_spans=frozenset([(0.75, 1.0)]),
)
ADAPTERS = (*(("text-bank", e) for e in (0, 1, 5, 10)), *(("linear", e) for e in (1, 2, 5, 10)))
CORRUPTIONS = (*(("mixed", e) for e in (0, 1, 5, 10)), *((k, 5) for k in ("cut-paste", "perlin", "noise")))
EVERYTHING = ("rendered", "magnetic tile", "PCB, mixed")


JOINING = ("output", "fusion", "text_weight", "epochs", "anomalies", "copies", "learning_rate")
"""Settings that do not change the visual maps."""


@dataclass(frozen=True)
class Variant:
    """Line of a table."""

    section: str
    label: str
    method: str
    settings: dict[str, Any]
    data: Sequence[str] = EVERYTHING
    control: bool = False
    """Whether to measure the random network too."""
    share: int = 1
    """Step between scored images of a set: 1 = all."""


@dataclass(frozen=True)
class Row:
    """Metrics of one variant on one data set: means over its sets."""

    section: str
    variant: str
    data: str
    weights: str
    images: int
    pixel_auroc: float
    aupro: float
    image_auroc: float
    milliseconds: float
    """Milliseconds of the method per image, without the encoding."""


def variants() -> Iterator[Variant]:
    """Yield all variants."""
    pairs = (*EVERYTHING, "PCB, own template")
    for output in ("text", "visual", "joint"):
        for path, name in (("ordinary", "Q-K"), ("value", "V-V")):
            settings = {"output": output, "path": path}
            section = "text, visual and joint, Q-K against V-V tokens"
            yield Variant(section, f"{output}, {name}", "dual-image", settings, pairs, control=True)
    for rule in RULES:
        yield Variant("fusion", rule, "dual-image", {"fusion": rule}, pairs, control=True)
    for output in ("visual", "joint"):
        for pairing, k in (
            ("random", 1),
            ("random", 2),
            ("random", 4),
            ("random", 8),
            ("nearest", 1),
            ("nearest", 4),
        ):
            settings = {"pairing": pairing, "references": k, "output": output}
            label, control = f"{output}, {pairing}, k={k}", pairing == "random" and k in (1, 4)
            yield Variant("references", label, "dual-image", settings, control=control)
    for start, end in ((0.25, 0.5), (0.5, 0.75), (0.75, 1.0)):
        settings = {"output": "visual", "blocks_from": start, "blocks_to": end}
        label = f"{start:g} to {end:g}"
        yield Variant("blocks of the visual score", label, "dual-image", settings, control=True)
    for output in ("visual", "joint"):
        yield Variant(
            "mutual", f"{output}, exact", "mutual", {"output": output, "search": "exact"}, control=True
        )
        yield Variant(
            "mutual", f"{output}, index", "mutual", {"output": output, "search": "exact", "exact_limit": 1}
        )
    for label, changed in (
        ("a fifth of the patches left out", {"left_out": 0.2}),
        ("lowest tenth of the images", {"lowest": 0.1}),
        ("all images", {"lowest": 1.0}),
    ):
        yield Variant(
            "mutual", f"visual, exact, {label}", "mutual", {"output": "visual", "search": "exact", **changed}
        )
    few: dict[str, Any] = {"section": "adaptation", "share": 3, "data": EVERYTHING[:2]}
    yield Variant(label="anoclip", method="anoclip", settings={}, control=True, **few)
    for adapter, epochs in ADAPTERS:
        label, settings = f"anoclip+, {adapter}, {epochs} epochs", {"adapter": adapter, "epochs": epochs}
        yield Variant(label=label, method="anoclip+", settings=settings, control=epochs == 5, **few)
    yield Variant(label="dual-image", method="dual-image", settings={}, control=True, **few)
    for kind, epochs in CORRUPTIONS:
        label, settings = f"dual-image+, {kind}, {epochs} epochs", {"anomalies": kind, "epochs": epochs}
        control = (kind, epochs) == ("mixed", 5)
        yield Variant(label=label, method="dual-image+", settings=settings, control=control, **few)


@dataclass(frozen=True)
class Encoded:
    """Set of images after its single encoding."""

    pictures: PictureSet
    images: torch.Tensor
    features: Features
    templates: Features | None
    anchors: TextAnchors
    visual: dict[Any, tuple[Any, torch.Tensor, float]] = field(default_factory=dict)
    """Cache shared by variants that differ only in score fusion: references, maps, and their seconds."""


def encode(pictures: PictureSet, backbone: OpenClipBackbone) -> Encoded:
    """Encode every image of a set once."""

    def features(pieces: Any) -> tuple[torch.Tensor, Features]:
        images = torch.from_numpy(normalize(pieces, backbone.mean, backbone.std))
        return images, Features.concat([backbone.encode(part, REQUEST) for part in images.split(BATCH)])

    table = load_prompts()
    domain = table.domain("auto", pictures.object)
    anchors = encode_anchors(backbone, *table.prompt_set("anoclip").sentences(pictures.object, domain))
    images, encoded = features(pictures.pieces)
    templates = None if pictures.templates is None else features(pictures.templates)[1]
    return Encoded(pictures, images, encoded, templates, anchors)


@torch.inference_mode()
def score(
    method: Method, known: Encoded, backbone: OpenClipBackbone, share: int
) -> tuple[Scores, list[int], float]:
    """Return scores of every ``share``-th image, their indices, and seconds per image. The pool is the whole set."""

    def context(part: list[int], state: Any) -> MethodContext:
        return MethodContext(
            known.anchors,
            (MASK_SIDE, MASK_SIDE),
            seeds=part,
            backbone=backbone,
            images=known.images[part],
            paired_references=None if known.templates is None else known.templates[part],
            pool_index=part,
            state=state,
        )

    everything = list(range(len(known.images)))
    state, seconds = None, 0.0
    if isinstance(method, JointMethod):
        settings = {**method.settings(), **dict.fromkeys(JOINING)}
        key = (method.name, *sorted(settings.items(), key=str))
        if key not in known.visual:
            started = time.perf_counter()
            compared = method.gather(known.features, context(everything, None))
            visual = method.visual_scores(known.features, context(everything, None), compared)
            known.visual[key] = (compared, visual, (time.perf_counter() - started) / len(everything))
        compared, visual, seconds = known.visual[key]
        state = method.align(known.features, context(everything, None), compared, *visual)
    started = time.perf_counter()
    chosen = everything[::share]
    parts = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
    scores = Scores.concat([method.score(known.features[part], context(part, state)) for part in parts])
    return scores, chosen, seconds + (time.perf_counter() - started) / len(chosen)


def measure(
    variant: Variant, sets: Sequence[Encoded], backbone: OpenClipBackbone, weights: str
) -> Iterator[Row]:
    """Return one row per data set."""
    method = make_method(variant.method, variant.settings)
    for data in dict.fromkeys(s.pictures.data for s in sets if s.pictures.data in variant.data):
        figures, count, seconds = [], 0, 0.0
        for known in (s for s in sets if s.pictures.data == data):
            scores, chosen, each = score(method, known, backbone, variant.share)
            seconds += each * len(chosen)
            masks = known.pictures.masks[chosen]
            pixel = pixel_metrics(list(masks), list(scores.map.numpy()))
            labels = masks.any((1, 2))
            image = image_metrics(labels, scores.image.numpy())
            figures.append((pixel.auroc, pixel.aupro, image.auroc))
            count += len(chosen)
        means = np.mean(figures, 0)
        yield Row(
            variant.section,
            variant.label,
            data,
            weights,
            count,
            *(float(m) for m in means),
            milliseconds=1000 * seconds / count,
        )


def markdown(rows: Sequence[Row]) -> str:
    """Return one table per section: a line per variant and weights, three values per data set."""
    out = []
    for section in dict.fromkeys(row.section for row in rows):
        own = [row for row in rows if row.section == section]
        data = list(dict.fromkeys(row.data for row in own))
        out += [f"### {section[0].upper()}{section[1:]}", ""]
        out.append(f"| variant | weights | {' | '.join(data)} | ms a photo |")
        out.append("|---|---|" + "---|" * len(data) + "---:|")
        cells = {(row.variant, row.weights, row.data): row for row in own}
        for weights in dict.fromkeys(row.weights for row in own):
            for variant in dict.fromkeys(row.variant for row in own if row.weights == weights):
                line = [cells.get((variant, weights, d)) for d in data]
                cost = np.mean([row.milliseconds for row in line if row])
                shown = " | ".join(_cell(row) for row in line)
                out.append(f"| {variant} | {weights} | {shown} | {cost:.0f} |")
        out.append("")
    return "\n".join(out)


def _cell(row: Row | None) -> str:
    if row is None:
        return "—"
    return " / ".join(
        "—" if np.isnan(v) else f"{v:.3f}" for v in (row.pixel_auroc, row.aupro, row.image_auroc)
    )


def main() -> None:
    """Run the ablations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for ablations.json, ablations.md, claims.md"
    )
    parser.add_argument("--page", type=Path, help="documentation page whose tables are replaced")
    parser.add_argument("--only", nargs="*", help="sections to measure; all by default")
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows: list[Row] = []
    sets: list[PictureSet] = []
    fingerprints: dict[str, str] = {}
    for weights in ("trained", "random"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = load_backbone("tiny", None if weights == "trained" else "random", device="cpu")
        fingerprints[weights] = backbone.fingerprint[:12]
        if not sets:
            reader = ImageLoader(ResizeSpec(backbone.image_size))
            sets = list(rendered(backbone.image_size))
            if (arguments.data / "magnetic_tile").is_dir():
                sets.append(magnetic_tile(arguments.data / "magnetic_tile", reader))
            if (arguments.data / "deep_pcb").is_dir():
                sets += deep_pcb(arguments.data / "deep_pcb", reader)
        known = [encode(pictures, backbone) for pictures in sets]
        print(
            f"{weights}: {sum(len(s.pieces) for s in sets)} pictures at {time.perf_counter() - started:.0f} s"
        )
        for variant in variants():
            if weights == "random" and not variant.control:
                continue
            if arguments.only and variant.section not in arguments.only:
                continue
            for row in measure(variant, known, backbone, weights):
                rows.append(row)
                name = f"{row.section}: {row.variant}"
                print(
                    f"{weights:8s} {name:58s} {row.data:18s} {_cell(row)}  {row.milliseconds:.0f} ms",
                    flush=True,
                )
    about: dict[str, Any] = {
        **provenance("python benchmarks/ablations.py"),
        "model": f"tiny at {backbone.image_size} px, trained {fingerprints['trained']}, random"
        f" {fingerprints['random']}",
        "seconds": round(time.perf_counter() - started),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2)
    (arguments.out / "ablations.json").write_text(stored + "\n")
    made = ", ".join(f"{key}: {value}" for key, value in about.items())
    tables = f"{markdown(rows)}\n{made}\n"
    (arguments.out / "ablations.md").write_text(tables)
    (arguments.out / "claims.md").write_text(claims([asdict(row) for row in rows]))
    if arguments.page:
        replace_between(arguments.page, START, END, tables.rstrip("\n"))


if __name__ == "__main__":
    main()
