"""Short benchmark runs over a folder of rendered images, in this process."""

from __future__ import annotations

import sys

import pytest

from clipspect.benchmark.candidates import make_candidates
from clipspect.benchmark.datasets import load_categories
from clipspect.benchmark.jobs import Settings
from clipspect.benchmark.runner import run_benchmark
from clipspect.cli import main
from clipspect.config import DetectorConfig

SMALL = Settings(DetectorConfig(image_size=64))
COLUMNS = [
    "method", "model", "weights", "category", "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap",
    "pixel_f1max", "aupro",
]  # fmt: skip


def run(root, out, methods="anoclip", settings=SMALL, sweep=None, shots=None, **options):
    """Results of methods, separated by commas, on the data set at ``root``."""
    candidates = make_candidates(methods.split(","), {}, sweep or {}, shots)
    return run_benchmark(
        "folder", load_categories("folder", root), candidates, out, settings=settings, **options
    )


def values(results):
    """Metric → value of each result."""
    return [result.figures.values for result in results]


def command(monkeypatch, *words: str) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["clipspect", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)
