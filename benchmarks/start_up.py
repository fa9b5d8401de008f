"""Time commands from the shell: one image with PyTorch, an exported file in ONNX Runtime, the demo, a service.

    python benchmarks/start_up.py --out benchmarks/results/start_up.json --page docs/speed.md

Each command runs in a new process, in turns; the first round fills caches and is not counted. A service is stopped as
soon as ``/readyz`` answers 200. ``seconds`` is the wall time and ``cpu`` the processor time of the process and its
threads: the fairer figure on a machine with other load.

"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from clipspect.benchmark.provenance import provenance
from clipspect.demo import DEMO_IMAGES
from pages import replace_between
from service_load import is_ready

START, END = "<!-- start-up -->", "<!-- end of start-up -->"
OBJECT = "metal bracket"


def run(words: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return wall and processor seconds of a Python process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_until_ready(words: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return wall and processor seconds until a service is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    service = subprocess.Popen(
        [sys.executable, *words, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    try:
        while not is_ready(f"http://127.0.0.1:{port}"):
            if service.poll() is not None:
                raise RuntimeError(f"the service ended with {service.returncode} before it was ready")
            time.sleep(0.02)
        wall = time.perf_counter() - started
    finally:
        service.kill()
        service.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    photo = str(sorted(DEMO_IMAGES.glob("*crack*"))[0])
    detect = ["-m", "clipspect", "detect", photo, "--overlays", "none"]
    taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        # Compiled modules are kept, as in an installed package.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        exported = f"{folder}/bracket.onnx"
        export = ["-m", "clipspect", "export", "--object", OBJECT, "-o", exported]
        subprocess.run([sys.executable, *export], check=True, capture_output=True)
        commands = {
            "python": ["-c", "pass"],
            "import torch": ["-c", "import torch"],
            "clipspect --help": ["-m", "clipspect", "--help"],
            "clipspect detect part.jpg": [*detect, "--object", OBJECT],
            "clipspect detect part.jpg --runtime onnx": [*detect, "--runtime", "onnx", "--model", exported],
            "clipspect demo": ["-m", "clipspect", "demo", "--out", f"{folder}/demo"],
            "clipspect serve": ["-m", "clipspect", "serve"],
        }
        for _ in range(arguments.rounds + 1):
            for name, words in commands.items():
                measure = run_until_ready if name.endswith("serve") else run
                taken[name].append(measure(words, environment))
    rows: list[dict[str, Any]] = [
        {"name": name, "seconds": median(w for w, _ in each[1:]), "cpu": median(c for _, c in each[1:])}
        for name, each in taken.items()
    ]
    about = {**provenance("python benchmarks/start_up.py"), "model": "tiny", "rounds": arguments.rounds}
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    table = ["| command | seconds | processor seconds |", "|---|---:|---:|"]
    table += [f"| `{row['name']}` | {row['seconds']:.2f} | {row['cpu']:.2f} |" for row in rows]
    table += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    print("\n".join(table))
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join(table))


if __name__ == "__main__":
    main()
