"""One long run: does memory stay flat, do file handles stay few, is the last tenth as fast as the first?

python benchmarks/long_run.py --photographs 10000 --out runs/long

Draws the demo's bracket a few times, writes each photograph as one of them, shifted and with grain of its own, scores
them in one process into one results folder, and says per tenth of the run: photographs per second of wall clock and of
processor time (the second suffers less from neighbours on a shared machine), resident memory, open files.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

import clipspect
from clipspect.evaluation.provenance import provenance
from clipspect.results.run import Progress, run_folder
from clipspect.results.store import iterate_rows
from clipspect.training.demo_photos import photograph

DISTINCT = 32
TENTHS = 10
PER_FOLDER = 1000


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    photographs: int
    wall: float
    """Seconds."""
    cpu: float
    """Seconds of the process, all threads."""
    memory: float
    """Resident, in MB."""
    files: int
    """Open file handles."""


def main() -> None:
    """Draw, run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=int, default=10_000)
    parser.add_argument("--method", default="anoclip")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for photographs, results, long_run.json"
    )
    arguments = parser.parse_args()
    photos = arguments.out / "photos"
    shutil.rmtree(arguments.out / "results", ignore_errors=True)
    started = time.monotonic()
    write_photographs(photos, arguments.photographs)
    print(f"{arguments.photographs} photographs written in {time.monotonic() - started:.0f} s", flush=True)
    samples = run(photos, arguments.out / "results", arguments.method, arguments.photographs)
    rows = [(row["path"], row["error"]) for row in iterate_rows(arguments.out / "results", ["path", "error"])]
    assert len(rows) == len({path for path, _ in rows}) == arguments.photographs
    print_table(samples)
    record = {
        "provenance": provenance("python benchmarks/long_run.py"),
        "failed": sum(error is not None for _, error in rows),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parts": len(list((arguments.out / "results" / "detections").iterdir())),
        "samples": [asdict(sample) for sample in samples],
    }
    print({name: value for name, value in record.items() if name != "samples"})
    (arguments.out / "long_run.json").write_text(json.dumps(record, indent=1))


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs of 512 × 512 in subfolders of a thousand; those that are there already stay."""
    kinds = ("good", "scratch", "crack", "hole")
    drawn: list[np.ndarray] = []
    for number in range(count):
        path = folder / f"{number // PER_FOLDER:03d}" / f"{number:06d}.jpg"
        if path.exists():
            continue
        while len(drawn) < DISTINCT:
            picture = photograph(kinds[len(drawn) % len(kinds)], len(drawn))[0]
            drawn.append((picture.permute(1, 2, 0) * 255).numpy())
        generator = np.random.default_rng(number)
        shift = tuple(generator.integers(-12, 13, 2))
        grain = generator.normal(0, 3, (512, 512, 1)).astype(np.float32)
        pixels = np.roll(drawn[number % DISTINCT], shift, (0, 1)) + grain
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def run(photos: Path, out: Path, method: str, count: int) -> list[Sample]:
    """Score everything; a sample after a warm-up of a hundredth, after each tenth, and at the very end."""
    marks = {round(count * tenth / TENTHS) or count // 100 for tenth in range(TENTHS + 1)}
    samples: list[Sample] = []
    started = time.monotonic()

    def watch(state: Progress) -> None:
        if state.stage == "detect" and state.done in marks:
            samples.append(sample(state.done, started))

    detector = clipspect.load(method, model="tiny")
    summary = run_folder(detector, photos, object="metal bracket", out=out, overlays="none", progress=watch)
    print(f"{summary.photographs} photographs, {summary.failed} failed, {summary.seconds:.0f} s", flush=True)
    samples.append(sample(count, started))
    return samples


def sample(done: int, started: float) -> Sample:
    """The process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        done,
        time.monotonic() - started,
        time.process_time(),
        pages * resource.getpagesize() / 2**20,
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
    )


def print_table(samples: list[Sample]) -> None:
    """A line per tenth; the last sample is after thresholds, regions and report."""
    print("| photographs | per second | per CPU second | memory, MB | open files |\n|---|---|---|---|---|")
    for before, after in pairwise(samples[:-1]):
        done = after.photographs - before.photographs
        wall, cpu = done / (after.wall - before.wall), done / (after.cpu - before.cpu)
        print(f"| {after.photographs} | {wall:.1f} | {cpu:.1f} | {after.memory:.0f} | {after.files} |")
    last, end = samples[-2:]
    print(f"| report written | {end.wall - last.wall:.0f} s | {end.cpu - last.cpu:.0f} s | ", end="")
    print(f"{end.memory:.0f} | {end.files} |")


if __name__ == "__main__":
    main()
