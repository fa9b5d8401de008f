"""Where a benchmark's figures come from: said under every table."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import clipspect


def provenance(command: str | None = None) -> dict[str, str]:
    """Date, machine, versions and the command that was typed; ``command`` names its first word or words."""
    typed = shlex.join(sys.argv[1:])
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        **versions(),
        "command": f"{command or Path(sys.argv[0]).name} {typed}".strip(),
    }


def machine() -> str:
    """The processor or the accelerator, and how many threads or cards compute."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} visible"
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"clipspect": clipspect.__version__, "torch": torch.__version__}
    for package in ("open_clip_torch", "anomalib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> float | None:
    """Most megabytes held so far: of the accelerator where there is one, else of the process's resident memory.

    None on systems that do not tell (Windows).
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def _processor() -> str:
    """The processor's name as the system tells it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
