"""The example plug-in, installed as a package and used by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[1]
MAIN = "from clipspect.cli import main; main()"
SCRIPT = """
import json, sys
import clipspect
from clipspect.errors import UsageError
from clipspect.registry import list_methods

detector = clipspect.load("deviation", "pixels:16", device="cpu", settings={"power": "2"})
found = detector.detect(sorted(sys.argv[1:]), "plate")
refused = []
for method, model in (("anoclip", "pixels:16"), ("deviation", "pixels:x"), ("musc", "pixels:16")):
    try:
        clipspect.load(method, model, device="cpu")
    except UsageError as error:
        refused.append(str(error))
print(json.dumps({
    "about": list_methods()["deviation"],
    "scores": [d.score for d in found],
    "settings": detector.settings()["methods"],
    "model": detector.backbone.name,
    "refused": refused,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the plug-in's package and metadata, as pip writes them; needs no build tools."""
    folder, plugin = tmp_path_factory.mktemp("plugin"), REPOSITORY / "examples" / "plugin"
    project = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(plugin / "src" / "clipspect_example", folder / "clipspect_example")
    metadata = folder / f"clipspect_example-{project['version']}.dist-info"
    metadata.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(header, encoding="utf-8")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return folder


def run(installed, *arguments):
    paths = [str(installed), str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment
    ).stdout


def test_its_method_and_backbone_run_by_name(installed, plates):
    images = [str(path) for path in sorted(plates.rglob("*.png"))[:3]]
    told = json.loads(run(installed, "-c", SCRIPT, *images))
    assert "example plug-in" in told["about"]
    assert len(told["scores"]) == 3
    assert all(0 <= score <= 1 for score in told["scores"])
    assert told["settings"] == {"deviation": {"block": -1, "power": 2.0}}
    assert told["model"] == "pixels:16"
    assert "no text tower" in told["refused"][0]
    assert "pixels:16" in told["refused"][1]
    assert "ordinary tokens only" in told["refused"][2]


def test_the_command_line_lists_and_runs_it(installed, plates, tmp_path):
    listed = run(installed, "-c", MAIN, "methods", "deviation")
    assert "Exponent of the distances" in " ".join(listed.split())
    out = tmp_path / "results"
    run(installed, "-c", MAIN, "detect", str(plates), "--object", "plate", "--method", "deviation",
        "--model", "pixels:16", "--out", str(out))  # fmt: skip
    assert (out / "report.html").is_file()
