"""The function of the Gradio example gives an overlay and a verdict; Gradio itself is replaced."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

from PIL import Image

from clipspect.demo import DEMO_IMAGES

DEMO = Path(__file__).parents[1] / "examples" / "gradio" / "demo.py"


def test_the_demo_inspects_an_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    inspect = runpy.run_path(str(DEMO))["inspect"]
    with Image.open(DEMO_IMAGES / "08_crack.jpg") as image:
        overlay, verdict = inspect(image, "metal bracket")
    assert overlay.size == image.size
    assert "score 0." in verdict
