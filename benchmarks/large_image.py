"""Measure time and peak memory of one large image, whole and in tiles.

    python benchmarks/large_image.py --page docs/speed.md

Each row is one run of the command line in its own process. The image is a JPEG of noise and slow changes of brightness.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clipspect.benchmark.provenance import provenance
from pages import replace_between

START, END = "<!-- large image -->", "<!-- end of large image -->"


def draw(path: Path, side: int) -> None:
    """Write a JPEG of a square image."""
    rng = np.random.default_rng(0)
    small = rng.normal(128, 20, (side // 4, side // 4, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=88)


def measure(image: Path, tile: int | None) -> tuple[float, float]:
    """Return seconds and peak memory in MB of one run of the command line."""
    command = ["detect", str(image), "--object", "surface", "--max-pixels", str(10**9)]
    command += ["--out", str(image.parent / f"tile-{tile}"), *(["--tile", str(tile)] if tile else [])]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "clipspect", *command], check=True, capture_output=True)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Measure each run in a separate process, because a process knows only the peak of all its children."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 5000, 10_000])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--one", type=int, nargs=2, metavar=("SIDE", "TILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, tile = arguments.one
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.jpg"
            draw(image, side)
            print(*measure(image, tile or None))
        return
    lines = ["| megapixels | tile | seconds | peak memory, MB |", "|---:|---:|---:|---:|"]
    for side in arguments.sides:
        for tile in (0, arguments.tile):
            told = subprocess.run(
                [sys.executable, __file__, "--one", str(side), str(tile)],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds, memory = map(float, told.stdout.split())
            lines.append(f"| {side**2 / 1e6:.0f} | {tile or 'whole'} | {seconds:.0f} | {memory:,.0f} |")
            print(lines[-1], flush=True)
    about = provenance("python benchmarks/large_image.py")
    lines += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join(lines))


if __name__ == "__main__":
    main()
