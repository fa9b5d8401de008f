"""Measure one long run: memory growth, open files, and the speed of the last tenth against the first.

python benchmarks/long_run.py --images 100000 --side 256 --image-size 128 --precision bf16 --batch-size 16 \\
    --out runs/long

Draws the demo's bracket a few times, and writes each image as one of them, shifted and with its own noise. Scores the
images in one process into one results folder. Reports per tenth of the run: images per second of wall time and of CPU
time (less affected by other load), resident memory, open files. ``--write-only`` only writes the images, so that the
run can start later on an idle machine.

"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

import clipspect
from clipspect.benchmark.provenance import provenance
from clipspect.results.run import Progress, RunSummary, run_folder
from clipspect.results.store import iterate_rows
from clipspect.training.demo_images import render_image

DISTINCT = 32
TENTHS = 10
PER_FOLDER = 1000


@dataclass(frozen=True)
class Sample:
    """Measurement of the process at one moment."""

    stage: str
    """detect: scoring, the first sample after a warm-up; finish: thresholds applied; end: report written."""
    images: int
    wall: float
    """Seconds."""
    cpu: float
    """CPU seconds of the process, all threads."""
    machine: float
    """CPU seconds of the whole machine, including other processes and time stolen by a hypervisor."""
    memory: float
    """Resident, in MB."""
    files: int
    """Open file handles."""


def main() -> None:
    """Write images, run, print and write results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--method", default="anoclip")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--write-only", action="store_true", help="write the images and end")
    parser.add_argument("--out", type=Path, required=True, help="folder for images, results, long_run.json")
    arguments = parser.parse_args()
    photos, results = arguments.out / "photos", arguments.out / "results"
    shutil.rmtree(results, ignore_errors=True)
    started = time.monotonic()
    write_images(photos, arguments.images, arguments.side)
    print(f"{arguments.images} images written in {time.monotonic() - started:.0f} s", flush=True)
    if arguments.write_only:
        return
    detector = clipspect.load(
        arguments.method,
        model="tiny",
        image_size=arguments.image_size,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    )
    summary, samples = run(detector, photos, results, arguments.images)
    rows = [(row["path"], row["error"]) for row in iterate_rows(results, ["path", "error"])]
    assert len(rows) == len({path for path, _ in rows}) == arguments.images
    print_table(samples)
    record = {
        "provenance": provenance("python benchmarks/long_run.py"),
        "settings": detector.settings(),
        "agreement": None if detector.agreement is None else str(detector.agreement),
        "rows": len(rows),
        "failed": sum(error is not None for _, error in rows),
        "flagged": summary.flagged,
        "seconds": summary.seconds,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parts": len(list((results / "detections").iterdir())),
        "gigabytes": sum(file.stat().st_size for file in results.rglob("*") if file.is_file()) / 1e9,
        "samples": [asdict(sample) for sample in samples],
    }
    print({name: value for name, value in record.items() if name not in ("samples", "settings")})
    (arguments.out / "long_run.json").write_text(json.dumps(record, indent=1) + "\n")


def write_images(folder: Path, count: int, side: int = 512) -> None:
    """Write JPEGs of side × side in subfolders of a thousand; existing ones are kept."""
    kinds = ("good", "scratch", "crack", "hole")
    drawn: list[np.ndarray] = []
    for number in range(count):
        path = folder / f"{number // PER_FOLDER:03d}" / f"{number:06d}.jpg"
        if path.exists():
            continue
        while len(drawn) < DISTINCT:
            picture = render_image(kinds[len(drawn) % len(kinds)], len(drawn))[0]
            pixels = (picture.permute(1, 2, 0) * 255).numpy().astype(np.uint8)
            small = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            drawn.append(np.asarray(small).astype(np.float32))
        generator = np.random.default_rng(number)
        shift = tuple(generator.integers(-side // 40, side // 40 + 1, 2))
        grain = 3 * generator.standard_normal((side, side, 1), np.float32)
        pixels = np.roll(drawn[number % DISTINCT], shift, (0, 1)) + grain
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def run(detector: clipspect.Detector, photos: Path, out: Path, count: int) -> tuple[RunSummary, list[Sample]]:
    """Score everything; sample after a warm-up of a hundredth, after each tenth, and at the end."""
    marks = {round(count * tenth / TENTHS) or count // 100 for tenth in range(TENTHS + 1)}
    samples: list[Sample] = []
    started = time.monotonic()

    def watch(state: Progress) -> None:
        if state.done in marks and (state.stage == "detect" or state.done == count):
            samples.append(sample(state.stage, state.done, started))

    summary = run_folder(
        detector, photos, object="metal bracket", out=out, overlays="flagged", progress=watch
    )
    samples.append(sample("end", count, started))
    return summary, samples


def sample(stage: str, done: int, started: float) -> Sample:
    """The process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return Sample(
        stage,
        done,
        time.monotonic() - started,
        time.process_time(),
        machine_time(),
        pages * resource.getpagesize() / 2**20,
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
    )


def machine_time() -> float:
    """Return CPU seconds since boot, without idle ones (fields: user nice system idle iowait irq softirq steal)."""
    ticks = [
        int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    ]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def print_table(samples: list[Sample]) -> None:
    """Print a line per tenth, the ratio of the last to the first tenth, and the steps after scoring."""
    print("| images | per second | per CPU second | neighbours' cores | memory, MB | open files |")
    print("|---|---|---|---|---|---|")
    scored = [one for one in samples if one.stage == "detect"]
    speeds = []
    for before, after in pairwise(scored):
        done = after.images - before.images
        wall, cpu = done / (after.wall - before.wall), done / (after.cpu - before.cpu)
        speeds.append((wall, cpu))
        others = (after.machine - before.machine - (after.cpu - before.cpu)) / (after.wall - before.wall)
        print(f"| {after.images} | {wall:.1f} | {cpu:.1f} | {max(others, 0):.2f} | ", end="")
        print(f"{after.memory:.0f} | {after.files} |")
    for before, after in pairwise([scored[-1], *samples[len(scored) :]]):
        names = {"finish": "rows judged, flagged ones drawn", "end": "report written"}
        print(f"| {names[after.stage]} | {after.wall - before.wall:.0f} s | ", end="")
        print(f"{after.cpu - before.cpu:.0f} s | | {after.memory:.0f} | {after.files} |")
    wall, cpu = (100 * (last / first - 1) for first, last in zip(speeds[0], speeds[-1], strict=True))
    print(f"the last tenth against the first: {wall:+.1f} % in wall time, {cpu:+.1f} % in CPU time")


if __name__ == "__main__":
    main()
