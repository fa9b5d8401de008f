"""Measure every precision on the machine that runs this: agreement with fp32 first, speed only of what agrees.

    python benchmarks/precisions.py --json benchmarks/results/precisions.json --page docs/speed.md

Precisions take turns; times are medians in processor seconds of one thread. ``class token`` is the encoder for the
image embedding alone, ``ordinary`` with the patch tokens of its last block, ``V-V`` with the V-V tokens;
``encode_image`` is open_clip's own. A precision that the processor has no instructions for is not timed, and one whose
maps do not agree is refused.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.benchmark.provenance import provenance
from clipspect.errors import UsageError
from clipspect.postprocess.agreement import compare_maps
from clipspect.precision import _make_probe_images, _maps, _probe_model, fast_precisions
from clipspect.types import Precision
from pages import replace_between
from speed import instructions

START, END = "<!-- precisions -->", "<!-- end of precisions -->"
MODELS = {"tiny": None, "ViT-B-16-plus-240": "random"}
NAMES: tuple[Precision, ...] = ("fp32", "bf16", "int8")
WORK = {
    "class token": FeatureRequest(),
    "ordinary": FeatureRequest(ordinary_blocks=frozenset([-1])),
    "V-V": FeatureRequest(value_blocks=frozenset([-1])),
}


def timed(works: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Return the median processor seconds of each work; they take turns."""
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: median(several) for name, several in seconds.items()}


def measure(model: str, weights: str | None, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row per precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact: Any = load_backbone(model, weights, device="cpu")
    probes = torch.from_numpy(_make_probe_images(exact))
    maps, scores = _maps(_probe_model(exact), probes)
    images = torch.randn(
        batch, 3, exact.image_size, exact.image_size, generator=torch.Generator().manual_seed(0)
    )
    fast = {"fp32", *fast_precisions(exact.device)}
    rows: list[dict[str, Any]] = []
    works: dict[Any, Callable[[], Any]] = {}
    for name in NAMES:
        row: dict[str, Any] = {"model": model, "precision": name}
        rows.append(row)
        backbone = exact if name == "fp32" else exact.with_precision(name)
        if name != "fp32":
            rough, rough_scores = _maps(_probe_model(backbone), probes)
            found = compare_maps(maps, rough, scores, rough_scores)
            row["agreement"] = found.rank_correlation
            try:
                found.check(name)
            except UsageError:
                row["state"] = "refused: maps do not agree"
                continue
        if name not in fast:
            row["state"] = "no instructions for it; not timed"
            continue
        works |= {(name, what): partial(backbone.encode, images, request) for what, request in WORK.items()}
        if name == "fp32" and weights is not None:
            works[name, "encode_image"] = partial(_open_clip, exact.network, images)
        row["state"] = "verified"
    for (name, what), seconds in timed(works, rounds).items():
        next(row for row in rows if row["precision"] == name)[what] = 1000 * seconds / batch
    return rows


@torch.inference_mode()
def _open_clip(network: Any, images: torch.Tensor) -> Any:
    return network.encode_image(images)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table, in milliseconds of one thread per image."""
    timings = ("encode_image", *WORK)
    lines = [f"| model | precision | rank correlation | {' | '.join(timings)} | V-V over ordinary | state |"]
    lines.append("|---|---|---:|" + "---:|" * (len(timings) + 1) + "---|")
    for row in rows:
        cells = [f"{row['agreement']:.5f}" if "agreement" in row else ""]
        cells += [f"{row[name]:.0f}" if name in row else "" for name in timings]
        cells.append(f"{row['V-V'] / row['ordinary']:.2f}" if "V-V" in row else "")
        lines.append(f"| {row['model']} | {row['precision']} | {' | '.join(cells)} | {row['state']} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON and the table of a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for model, weights in MODELS.items()
        for row in measure(model, weights, arguments.batch, arguments.rounds)
    ]
    about = provenance("python benchmarks/precisions.py") | {"instructions": instructions()}
    text = f"{markdown(rows)}\n\n{', '.join(f'{key}: {value}' for key, value in about.items())}"
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, text)


if __name__ == "__main__":
    main()
