"""Where a benchmark's figures come from: said under every table."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys

import torch

import clipspect


def provenance(script: str) -> dict[str, str]:
    """Date, machine, versions and the command that was typed."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "clipspect": clipspect.__version__,
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
    }
