"""One loader for all: the public function, the recipe of docs/export.md and the detector read the same pixels."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import clipspect
from clipspect.data.prepare import ImageLoader
from clipspect.data.reading import is_read_alike
from clipspect.data.transforms import ResizeSpec
from helpers.cases import CASES

EXPORT = Path(__file__).parents[2] / "docs" / "export.md"
GREY = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    colour = np.random.default_rng(1).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    Image.fromarray(GREY * 42).save(tmp_path / "deep.png")
    Image.fromarray(GREY % 256).save(tmp_path / "shallow.png")
    Image.fromarray(colour).save(tmp_path / "alpha.png")
    Image.fromarray(colour[:, :, :3]).save(tmp_path / "plain.png")
    return {"exif6": CASES / "exif6.png", **{path.stem: path for path in tmp_path.glob("*.png")}}


@pytest.fixture(scope="module")
def recipe():
    """The function of the document, as it is printed."""
    (code,) = re.findall(
        r"^def read_rgb.*?\n\n\n", EXPORT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names = {"np": np, "Image": Image, "ImageOps": ImageOps}
    exec(code, names)
    return names["read_rgb"]


@pytest.mark.filterwarnings("ignore:.*read as 8 bits")
@pytest.mark.parametrize("name", ["exif6", "deep", "shallow", "alpha", "plain"])
def test_the_recipe_of_the_document_reads_what_clipspect_reads(files, recipe, name):
    pixels = clipspect.read_image(files[name])
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    np.testing.assert_array_equal(np.asarray(recipe(files[name])), pixels)
    np.testing.assert_array_equal(ImageLoader(ResizeSpec(32)).read(files[name]).pixels(), pixels)


def test_only_plain_files_are_read_alike_by_everybody(files):
    assert {name for name, path in files.items() if is_read_alike(path)} == {"plain"}


def test_notes_are_python_warnings():
    with pytest.warns(UserWarning, match="3 pages"):
        clipspect.read_image(CASES / "multipage.tif")
    with pytest.warns(UserWarning, match="--bit-depth 12"):
        dark = clipspect.read_image(CASES / "g12bit_in16.tif")
    assert (dark.max(), clipspect.read_image(CASES / "g12bit_in16.tif", bit_depth=12).max()) == (16, 253)


def test_reading_loads_no_torch():
    path = str(CASES / "exif6.png")
    check = f"import sys, clipspect; clipspect.read_image({path!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_nearly_constant_image_has_a_note():
    loader = ImageLoader(ResizeSpec(32))
    noise = np.random.default_rng(0).normal(0, 0.3, (40, 50, 3))
    assert "nearly constant" in loader.read((120 + noise).round().astype(np.uint8)).notes[-1]
    grain = np.random.default_rng(0).normal(0, 3, (40, 50, 3))
    assert not loader.read((120 + grain).round().astype(np.uint8)).notes
