"""Every code block of README and docs runs: Python as it stands, `clipspect …` and `python -m clipspect.…` lines."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from clipspect.cli import main
from clipspect.demo import DEMO_IMAGES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_MORE = re.compile(r"<!-- not run: (.+) -->\s*$")
"""A comment before a block that needs weights or data no test has, with the reason."""
NEEDS_PACKAGE = re.compile(r"<!-- needs: (\w+) -->")
"""A comment on a page whose blocks need a package of one of the extras."""


def blocks(page: Path):
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if not NEEDS_MORE.search(text[: found.start()]):
            yield found.group(1), found.group(2)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as the pages assume it: photos/, good/, part.png, own.toml."""
    shutil.copytree(DEMO_IMAGES, tmp_path / "photos")
    (tmp_path / "good").mkdir()
    for photo in sorted(DEMO_IMAGES.glob("*good*"))[:4]:
        shutil.copy(photo, tmp_path / "good")
    from PIL import Image

    Image.open(sorted(DEMO_IMAGES.glob("*crack*"))[0]).save(tmp_path / "part.png")
    (tmp_path / "own.toml").write_text('[domains]\nweld = ["weld photo"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page, workplace, monkeypatch):
    for package in NEEDS_PACKAGE.findall(page.read_text(encoding="utf-8")):
        pytest.importorskip(package, reason=f"{package} is not installed")
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
        for line in code.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                monkeypatch.setattr(sys, "argv", words[2:])
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            if not words or words[0] != "clipspect":
                continue
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stopped:
                main()
            assert (stopped.value.code or 0) in (0, 1), line
