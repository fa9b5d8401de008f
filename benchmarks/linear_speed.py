"""Compare the libraries for float32 matmuls on this processor: oneDNN and PyTorch's choice (MKL on x86).

    python benchmarks/linear_speed.py --out benchmarks/results/linear_speed.json --page docs/speed.md

Shapes are those of the encoders, for one image on one thread, as in a run with parallel batches. Both take turns.
``chosen`` is the library that ``backbones/cpu/linear.py`` uses here.

"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from clipspect.backbones.cpu.linear import onednn_is_faster
from clipspect.benchmark.provenance import provenance
from pages import replace_between

START, END = "<!-- linear -->", "<!-- end of linear -->"
SHAPES = {
    "ViT-B-16-plus-240, qkv": (226, 896, 2688),
    "ViT-B-16-plus-240, MLP": (226, 896, 3584),
    "ViT-B-16-plus-240, projection": (226, 896, 896),
    "tiny, MLP": (1025, 192, 768),
    "patch comparison": (1024, 256, 1024),
}
"""Name → rows, inputs, outputs."""


def seconds(work: Any) -> float:
    """Return the processor seconds of one call, from as many calls as take a tenth of a second."""
    calls, started = 0, time.process_time()
    while (taken := time.process_time() - started) < 0.1:
        work()
        calls += 1
    return taken / calls


@torch.inference_mode()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (count, inputs, outputs) in SHAPES.items():
        x, weight, bias = torch.randn(count, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        taken: dict[str, list[float]] = {"oneDNN": [], "PyTorch": []}
        onednn = partial(torch.ops.mkldnn._linear_pointwise, x, weight, bias, "none", [], "")
        for _ in range(arguments.rounds):
            taken["oneDNN"].append(seconds(onednn))
            taken["PyTorch"].append(seconds(partial(F.linear, x, weight, bias)))
        rate = {library: 2e-9 * count * inputs * outputs / median(each) for library, each in taken.items()}
        rows.append({"shape": name, **rate})
        print(rows[-1], flush=True)
    about = {
        **provenance("python benchmarks/linear_speed.py"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "chosen": "oneDNN" if onednn_is_faster() else "PyTorch",
    }
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    table = ["| matmul | oneDNN, GFLOP/s | PyTorch, GFLOP/s |", "|---|---:|---:|"]
    table += [f"| {row['shape']} | {row['oneDNN']:.0f} | {row['PyTorch']:.0f} |" for row in rows]
    table += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join(table))


if __name__ == "__main__":
    main()
