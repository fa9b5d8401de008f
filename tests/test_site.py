"""The documentation site builds without warnings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]


def test_the_site_builds_and_holds_the_reference(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in (
        "clipspect.loading.load",
        "clipspect.config.DetectorConfig",
        "clipspect.detector.Detector.detect",
        "clipspect.detector.Detector.calibrate",
    ):
        assert f'id="{name}"' in reference
