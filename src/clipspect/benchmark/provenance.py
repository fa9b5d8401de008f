"""Provenance of a benchmark's metrics, printed under every table."""

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
    """Return date, machine, versions and the command line; ``command`` replaces its first word or words."""
    typed = shlex.join(sys.argv[1:])
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        **versions(),
        "command": f"{command or Path(sys.argv[0]).name} {typed}".strip(),
    }


def machine() -> str:
    """Return the processor or accelerator, with its number of threads or devices."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} visible"
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    found = {"clipspect": clipspect.__version__, "torch": torch.__version__}
    for package in ("open_clip_torch", "anomalib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> float | None:
    """Return the peak memory in megabytes: of the accelerator if there is one, else the resident memory.

    None on systems that do not report it (Windows).
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
    """Return the processor's name as reported by the system."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
