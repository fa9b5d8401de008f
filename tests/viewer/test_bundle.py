"""The committed viewer equals its source, is safe to embed, and passes its own tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from clipspect.postprocess.heatmap import COOL, HEAT_COLORS, WARM
from clipspect.viewer import asset

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
VIEWER = ROOT / "viewer"
BUILT = ("viewer.js", "viewer.css")
PATIENCE_S = 240


@pytest.fixture(scope="module")
def npm() -> str:
    found = shutil.which("npm")
    if found is None:
        pytest.skip("Node and npm are not installed; the viewer is not built again")
    if not (VIEWER / "node_modules").is_dir():
        installed = subprocess.run(
            [found, "ci", "--ignore-scripts"], cwd=VIEWER, capture_output=True, text=True, timeout=PATIENCE_S
        )
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install the viewer's packages: {installed.stderr[-300:]}")
    return found


def npm_run(npm: str, *words: str) -> None:
    done = subprocess.run(
        [npm, "run", *words], cwd=VIEWER, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_bundle_equals_its_source(npm, tmp_path):
    npm_run(npm, "build", "--", "--outDir", str(tmp_path))
    for name in BUILT:
        assert (tmp_path / name).read_text(encoding="utf-8") == asset(name), "run make viewer and commit"


def test_the_unit_tests_of_the_viewer_pass(npm):
    npm_run(npm, "test")


@pytest.mark.parametrize("name", BUILT)
def test_the_bundle_can_stand_in_a_page_and_fetches_nothing(name):
    text = asset(name)
    assert len(text) < 150_000
    assert not re.search(r"</(script|style)|<!--", text, re.IGNORECASE)
    assert not re.search(r"\beval\(|new Function|@import|url\(|importScripts", text)
    addresses = {a for a in re.findall(r"https?://[\w./-]+", text) if "www.w3.org" not in a}  # names of SVG
    assert addresses == set()


def test_the_bundle_names_the_licenses_of_the_packages_in_it():
    packages = json.loads((VIEWER / "package.json").read_text(encoding="utf-8"))["dependencies"]
    notices = files("clipspect.viewer").joinpath("THIRD_PARTY.txt").read_text(encoding="utf-8")
    for name in packages:
        assert name in asset("viewer.js")[:600]
        assert f"## {name}\n" in notices


def test_the_lock_file_names_no_package_index():
    packages = json.loads((VIEWER / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert all(package.get("integrity") for name, package in packages.items() if name)
    assert not any("resolved" in package for package in packages.values())


def test_the_viewer_colors_scores_as_the_overlay_files_are_colored():
    source = (VIEWER / "src" / "scale.ts").read_text(encoding="utf-8")
    table = re.search(r"PALETTE[^=]*= \[(.*?)\];", source, re.DOTALL).group(1)
    colors = [tuple(map(int, rgb)) for rgb in re.findall(r"\[(\d+), (\d+), (\d+)\]", table)]
    assert colors == [tuple(color) for color in HEAT_COLORS.tolist()]
    assert f"COOL = {COOL}, WARM = {WARM};" in source
