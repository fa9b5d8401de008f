"""Masks of every kind of file mark the defects that were drawn in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from imagecodecs import png_encode
from PIL import Image

from clipspect.benchmark.datasets import load_categories
from clipspect.benchmark.folders import find_layout, list_folder
from clipspect.benchmark.masks import read_mask
from clipspect.benchmark.samples import Category, Sample, check_category
from clipspect.errors import ImageError
from helpers.cases import CASES

TRUTH = np.zeros((64, 96), bool)
TRUTH[10:20, 10:30] = TRUTH[40:50, 60:80] = True
SECOND = np.zeros_like(TRUTH)
SECOND[40:50, 60:80] = True


def save(tmp_path: Path, image: Image.Image, name: str = "mask.png", **options: object) -> np.ndarray:
    image.save(tmp_path / name, **options)
    height, width = (64, 96) if "exif" not in options else (96, 64)
    return read_mask(tmp_path / name, height, width).pixels


def paint(background, first, second, bands: int) -> np.ndarray:
    pixels = np.zeros((64, 96, bands), np.uint8) + np.array(background, np.uint8)
    pixels[TRUTH], pixels[SECOND] = first, second
    return pixels


@pytest.mark.parametrize("path", sorted((CASES / "masks").iterdir()), ids=lambda path: path.name)
def test_the_cases_hold_400_defective_pixels(path):
    mask = read_mask(path, 64, 96)
    assert mask.pixels.sum() == 400
    assert (mask.grey, mask.empty, mask.full) == (False, False, False)


@pytest.mark.parametrize(
    "colours",
    [
        ((0, 0, 0), (255, 0, 0), (255, 255, 255)),
        ((0, 0, 0), (0, 0, 255), (0, 255, 0)),
        ((0, 0, 0), (1, 0, 0), (0, 0, 1)),
        ((0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 255)),
        ((255, 255, 255, 0), (255, 0, 0, 255), (0, 0, 0, 128)),
        ((0, 0, 0, 255), (255, 0, 0, 255), (0, 0, 9, 255)),
        ((0, 0, 0, 0), (0, 9, 0, 0), (7, 0, 0, 0)),
    ],
)
def test_colours_and_transparency(tmp_path, colours):
    image = Image.fromarray(paint(*colours, bands=len(colours[0])))
    np.testing.assert_array_equal(save(tmp_path, image), TRUTH)


@pytest.mark.parametrize(
    ("palette", "indices"),
    [
        ([(0, 0, 0), (200, 0, 0), (0, 0, 200)], (0, 1, 2)),
        ([(200, 0, 0), (0, 0, 0), (0, 0, 200)], (1, 0, 2)),
        ([(68, 1, 84), (33, 145, 140), (253, 231, 37)], (0, 1, 2)),
        ([(255, 255, 255), (33, 145, 140), (253, 231, 37)], (0, 1, 2)),
        ([(200, 0, 0), (0, 0, 200), (255, 255, 255)], (2, 0, 1)),
    ],
    ids=["black first", "black elsewhere", "no black", "white first", "white elsewhere"],
)
@pytest.mark.parametrize("suffix", ["png", "tif", "gif"])
def test_palettes(tmp_path, palette, indices, suffix):
    if suffix == "gif" and palette[0] == (68, 1, 84):
        pytest.skip("GIF does not keep the indices")
    image = Image.fromarray(paint([indices[0]], [indices[1]], [indices[2]], 1)[:, :, 0], "P")
    image.putpalette([value for colour in palette for value in colour])
    np.testing.assert_array_equal(save(tmp_path, image, f"mask.{suffix}"), TRUTH)


def test_a_transparent_palette_colour_is_the_background(tmp_path):
    image = Image.fromarray(paint([0], [1], [2], 1)[:, :, 0], "P")
    image.putpalette([255, 255, 255, 255, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(save(tmp_path, image, transparency=0), TRUTH)


@pytest.mark.parametrize("levels", [(1, 2), (85, 255), (100, 200), (255, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_numbers_of_kinds_are_all_defective(tmp_path, levels, kind):
    values = np.zeros((64, 96), kind)
    values[TRUTH], values[SECOND] = levels
    np.testing.assert_array_equal(save(tmp_path, Image.fromarray(values)), TRUTH)


@pytest.mark.parametrize(
    ("values", "photometric"),
    [
        (TRUTH, "minisblack"),
        (~TRUTH, "miniswhite"),
        (TRUTH.astype(np.uint16) * 3, "minisblack"),
        (TRUTH.astype(np.float32), "minisblack"),
        ((~TRUTH).astype(np.uint8) * 255, "miniswhite"),
        (~np.zeros((64, 96), np.uint16) - TRUTH * np.uint16(9), "miniswhite"),
    ],
)
def test_tiff_masks(tmp_path, values, photometric):
    tifffile.imwrite(tmp_path / "mask.tif", values, photometric=photometric)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif", 64, 96).pixels, TRUTH)


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0)])
def test_the_noise_of_jpeg_is_no_defect(tmp_path, colour):
    image = Image.fromarray(paint((0, 0, 0), colour, colour, 3))
    found = save(tmp_path, image, "mask.jpg", quality=90, subsampling=0)
    assert np.count_nonzero(found != TRUTH) <= 8


@pytest.mark.parametrize("second", [(255, 255, 255), (128, 128, 128), (0, 130, 0)])
@pytest.mark.parametrize("first", [(255, 255, 255), (255, 0, 0), (100, 100, 100), (0, 100, 0)])
@pytest.mark.parametrize(("name", "quality"), [("mask.jpg", 80), ("mask.webp", 80), ("mask.tif", 80)])
def test_lossy_masks_hold_all_kinds_of_defects(tmp_path, first, second, name, quality):
    pixels = paint((0, 0, 0), first, second, 3)
    if name == "mask.tif":
        options = {"compression": "jpeg", "compressionargs": {"level": quality}}
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", **options)
        found = read_mask(tmp_path / name, 64, 96).pixels
    else:
        found = save(tmp_path, Image.fromarray(pixels), name, quality=quality)
    assert np.count_nonzero(found != TRUTH) <= 45


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_low_class_numbers_of_deep_png_are_defective(tmp_path, bands):
    values = np.full((64, 96, bands), 65535, np.uint16)
    values[:, :, : 3 if bands > 2 else 1] = 0
    values[TRUTH, 0] = 2
    (tmp_path / "mask.png").write_bytes(png_encode(values.squeeze()))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 64, 96).pixels, TRUTH)


def test_nan_is_no_defect(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.where(TRUTH, 1, np.nan).astype(np.float32))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif", 64, 96).pixels, TRUTH)


def test_a_mask_of_several_pages_is_refused(tmp_path):
    pages = np.stack([TRUTH & ~SECOND, SECOND]).astype(np.uint8) * 255
    tifffile.imwrite(tmp_path / "mask.tif", pages, photometric="minisblack")
    with pytest.raises(ImageError, match="has 2 pages; export one mask"):
        read_mask(tmp_path / "mask.tif", 64, 96)


def test_the_noise_of_jpeg_saved_again_is_no_defect(tmp_path):
    values = np.random.default_rng(1).integers(0, 4, (64, 96)).astype(np.uint8)
    values[TRUTH] = 255 - values[TRUTH]
    np.testing.assert_array_equal(save(tmp_path, Image.fromarray(values)), TRUTH)


def test_a_faint_rim_is_no_defect(tmp_path):
    small = Image.fromarray(TRUTH.astype(np.uint8) * 255).resize((960, 640), Image.Resampling.BICUBIC)
    blurred = small.resize((97, 63), Image.Resampling.BILINEAR).resize((96, 64), Image.Resampling.BICUBIC)
    blurred.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 64, 96)
    assert mask.grey
    assert abs(int(mask.pixels.sum()) - 400) <= 40


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(TRUTH.astype(np.uint8) * 255)
    np.testing.assert_array_equal(save(tmp_path, image, exif=exif), np.rot90(TRUTH, -1))


def test_empty_and_full_masks_are_known(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "none.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "all.png")
    assert read_mask(tmp_path / "none.png", 4, 4).empty
    assert read_mask(tmp_path / "all.png", 4, 4).full


def make(tmp_path: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number + 1).save(path)
    return tmp_path


def masks_of(folder: Path) -> tuple[dict[str, str | None], list[str]]:
    samples, _, warnings = list_folder(find_layout(folder))
    return {
        s.path.relative_to(folder).as_posix(): s.mask and s.mask.relative_to(folder).as_posix()
        for s in samples
        if s.defective
    }, warnings


def test_one_flat_mask_does_not_serve_two_kinds_of_defects(tmp_path):
    root = make(
        tmp_path,
        "good/0.png",
        "dent/001.png",
        "scratch/001.png",
        "dent/2.png",
        "masks/001.png",
        "masks/2.png",
    )
    found, warnings = masks_of(root)
    assert found == {"dent/001.png": None, "scratch/001.png": None, "dent/2.png": "masks/2.png"}
    assert "001.png fits 2 images (dent/001.png, scratch/001.png) and was used for none" in warnings[0]
    (category,) = load_categories("folder", root)
    assert any("used for none" in warning for warning in category.warnings)
    assert any(
        "without a mask, which count in the image metrics only: 2," in warning
        for warning in category.warnings
    )


def test_masks_by_kind_and_flat_masks_of_one_kind_are_found(tmp_path):
    root = make(tmp_path / "a", "good/0.png", "dent/1.png", "cut/1.png", "gt/dent/1.png", "gt/1.png")
    assert masks_of(root) == ({"dent/1.png": "gt/dent/1.png", "cut/1.png": "gt/1.png"}, [])
    root = make(tmp_path / "b", "good/0.png", "dent/1.png", "masks/1_mask.png", "masks/1.txt.png")
    assert masks_of(root) == ({"dent/1.png": "masks/1_mask.png"}, [])


def test_a_mask_of_two_images_is_told(tmp_path):
    root = make(tmp_path, "a.png", "b.png", "m.png")
    samples = [Sample(root / name, "dent", True, root / "m.png") for name in ("a.png", "b.png")]
    assert "2 images have the same mask" in check_category(Category("x", "x", samples)).warnings[0]
