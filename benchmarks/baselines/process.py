"""The rival's environment and its process: made once, asked over a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".venv"
PINS = ("anomalib>=2.7,<2.8", "open_clip_torch==2.24.0")
TOLERANCE = 2e-6
"""Largest difference from the recorded map and scores, as in tests/parity."""


def make_environment() -> Path:
    """The rival's Python, in an environment that borrows everything but open_clip from this one."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / ".installed"
    if not done.is_file():
        venv.create(ENVIRONMENT, with_pip=True, symlinks=True, clear=True)
        listing = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        own = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.strip()
        (Path(own) / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
        done.touch()
    return python


class Rival:
    """anomalib's WinCLIP on one model, in its own process."""

    def __init__(self, model: str, object: str, *, threads: int, device: str, parity: Path) -> None:
        """Start it and check it against the recorded numbers in ``parity``.

        Raises:
            RuntimeError: its numbers are not anomalib's: timing it would say nothing.
        """
        command = [str(make_environment()), str(HERE / "winclip.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.difference = self.ask("check", folder=str(parity))
        if max(self.difference.values()) > TOLERANCE:
            raise RuntimeError(f"the rival does not give anomalib's recorded numbers: {self.difference}")
        self.loaded = self.ask("load", model=model, object=object, threads=threads, device=device)

    def ask(self, what: str, **options: Any) -> dict[str, Any]:
        """The answer to one request; RuntimeError where the process has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": what, **options}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the rival ended at {what!r}; run {HERE / 'winclip.py'} by hand to see why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    print(make_environment(), file=sys.stderr)
