"""Every loader reads its layout offline, as anomalib does, and says what is wrong with a set that is not so."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipspect.benchmark.datasets import DATASETS, digest, load_categories
from clipspect.benchmark.folders import given_layout
from clipspect.benchmark.masks import fit_mask, read_mask
from clipspect.errors import ImageError, UsageError
from clipspect.training.layouts import LAYOUTS, render_pictures, write_layout

CATEGORY = {
    "btech": "01",
    "kolektor": "kolektor",
    "visa": "candle",
    "visa-split": "candle",
    "realiad": "audiojack",
}


@pytest.fixture(scope="module")
def pictures():
    return render_pictures(side=48)


@pytest.fixture
def own(tmp_path, pictures) -> Path:
    """A folder of one's own with four good and four dented plates."""
    write_layout("folder", tmp_path, "plate", pictures)
    return tmp_path / "plate"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read(name, tmp_path, pictures):
    if name != "folder":
        pytest.importorskip("anomalib", reason="anomalib is not installed: clipspect[benchmark]")
    category = CATEGORY.get(name, "bottle")
    write_layout(name, tmp_path, category, pictures)
    (found,) = load_categories(name.removesuffix("-split"), tmp_path)
    defective = [s for s in found.samples if s.defective]
    assert found.name == category
    assert len(defective) == 4
    assert all(s.mask is not None and read_mask(s.mask, 48, 48).pixels.any() for s in defective)
    assert all(s.mask is None and s.kind == "good" for s in found.samples if not s.defective)
    normal = len(found.samples) - 4 + len(found.train)
    assert normal == 7
    if name != "kolektor":  # its split is drawn
        assert len(found.train) == 3
    assert found.warnings == ()


@pytest.mark.parametrize(
    "name", ["mvtecad", "visa-split", "btech", "mpdd", "mvtecad2", "realiad", "kolektor"]
)
def test_the_test_split_is_anomalibs(name, tmp_path, pictures):
    data = pytest.importorskip("anomalib.data", reason="anomalib is not installed: clipspect[benchmark]")
    category = CATEGORY.get(name, "bottle")
    write_layout(name, tmp_path, category, pictures)
    modules = {
        "mvtecad": data.MVTecAD, "visa-split": data.Visa, "btech": data.BTech, "mpdd": data.MPDD,
        "mvtecad2": data.MVTecAD2, "realiad": data.RealIAD, "kolektor": data.Kolektor,
    }  # fmt: skip
    options = {} if name == "kolektor" else {"category": category}
    module = modules[name](root=tmp_path, num_workers=0, **options)
    module.setup()
    test = module.test_data
    if name in (
        "mvtecad2",
        "realiad",
    ):  # anomalib 2.7's modules lose the good images their data sets list
        from anomalib.data.datasets.image import mvtecad2, realiad

        listed = mvtecad2.MVTecAD2Dataset if name == "mvtecad2" else realiad.RealIADDataset
        test = listed(tmp_path, category, split="test")
    theirs = {(Path(row.image_path).resolve(), bool(row.label_index)) for row in test.samples.itertuples()}
    (found,) = load_categories(name.removesuffix("-split"), tmp_path)
    assert {(s.path.resolve(), s.defective) for s in found.samples} == theirs


def test_several_categories_are_found_and_chosen(tmp_path, pictures):
    pytest.importorskip("anomalib", reason="anomalib is not installed: clipspect[benchmark]")
    for name in ("metal_nut", "bottle"):
        write_layout("mvtecad", tmp_path, name, pictures)
    both = load_categories("mvtecad", tmp_path)
    assert [(c.name, c.object) for c in both] == [("bottle", "bottle"), ("metal_nut", "metal nut")]
    assert [c.name for c in load_categories("mvtecad", tmp_path, ["metal_nut"])] == ["metal_nut"]
    with pytest.raises(UsageError, match="no category 'cable'; there are: bottle, metal_nut"):
        load_categories("mvtecad", tmp_path, ["cable"])


@pytest.mark.parametrize("name", DATASETS)
def test_a_wrong_root_says_what_is_expected_and_where_to_get_it(name, tmp_path):
    with pytest.raises(UsageError) as caught:
        load_categories(name, tmp_path)
    assert f"no {DATASETS[name].title} in this folder" in str(caught.value)
    assert DATASETS[name].source in str(caught.value)
    with pytest.raises(UsageError, match="no such folder"):
        load_categories(name, tmp_path / "nowhere")


def test_an_empty_folder_and_an_unknown_set_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no product found"):
        load_categories("folder", tmp_path)
    with pytest.raises(UsageError, match="there are: folder, mvtecad"):
        load_categories("mvtec3d", tmp_path)


def test_without_anomalib_the_extra_is_named(tmp_path, pictures, monkeypatch):
    write_layout("mvtecad", tmp_path, "bottle", pictures)
    for name in [name for name in sys.modules if name.split(".")[0] == "anomalib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anomalib", None)
    with pytest.raises(UsageError, match=r"install\s+clipspect\[benchmark\]"):
        load_categories("mvtecad", tmp_path)
    monkeypatch.delitem(sys.modules, "clipspect.integrations.anomalib", raising=False)
    with pytest.raises(UsageError, match=r"install clipspect\[anomalib\]"):
        importlib.import_module("clipspect.integrations.anomalib")


def test_missing_masks_of_a_published_set_are_named(tmp_path, pictures):
    pytest.importorskip("anomalib", reason="anomalib is not installed: clipspect[benchmark]")
    write_layout("mvtecad", tmp_path, "bottle", pictures)
    (tmp_path / "bottle/ground_truth/scratch/002_mask.png").unlink()
    with pytest.raises(
        UsageError, match="defective images without a mask: 1, the first is test/scratch/002.png"
    ):
        load_categories("mvtecad", tmp_path)


def test_missing_masks_of_ones_own_folder_are_a_warning(own):
    (own / "masks/dent/002.png").unlink()
    (found,) = load_categories("folder", own)
    assert [s.path.name for s in found.samples if s.defective and s.mask is None] == ["002.jpg"]
    assert "defective images without a mask, which count in the image metrics only: 1," in found.warnings[0]
    shutil.rmtree(own / "masks")
    (bare,) = load_categories("folder", own)
    assert all(s.mask is None for s in bare.samples)


@pytest.mark.parametrize("name", ["mvtecad", "folder"])
def test_suffixes_in_any_case(name, tmp_path, pictures):
    if name == "mvtecad":
        pytest.importorskip("anomalib", reason="anomalib is not installed: clipspect[benchmark]")
    write_layout(name, tmp_path, "plate", pictures)
    for path in list(tmp_path.rglob("00[12]*")):
        path.rename(path.with_suffix(path.suffix.upper().replace("JPG", "Jpg")))
    (found,) = load_categories(name, tmp_path)
    assert len(found.samples) == 8
    assert all(s.mask is not None for s in found.samples if s.defective)


def test_the_same_image_in_both_splits_is_a_warning(own):
    shutil.copy(own / "good/001.jpg", own / "reference/copy.jpg")
    (found,) = load_categories("folder", own)
    assert found.warnings == (
        "1 test images are also training images, byte for byte, the first is 001.jpg (= copy.jpg):"
        " methods with references have seen them",
    )


def test_an_image_with_two_labels_is_a_warning(own):
    shutil.copy(own / "dent/001.jpg", own / "good/twin.jpg")
    (found,) = load_categories("folder", own)
    assert found.warnings == (
        "1 image is labeled both defective and good, byte for byte, the first is 001.jpg (= twin.jpg)",
    )


def test_a_folder_with_names_of_its_own(tmp_path, pictures):
    for old, new in (("good", "fine"), ("dent", "kaputt"), ("masks", "truth"), ("reference", "golden")):
        write_layout("folder", tmp_path, "plate", pictures)
        shutil.move(tmp_path / "plate" / old, tmp_path / "product" / new)
    shutil.move(tmp_path / "product/truth/dent", tmp_path / "product/truth/kaputt")
    root = tmp_path / "product"
    layout = given_layout(root, "fine", ["kaputt"], "truth", "golden")
    (found,) = load_categories("folder", root, layout=layout, object="steel plate")
    assert (len(found.samples), len(found.train), found.object) == (8, 3, "steel plate")
    assert all(s.mask is not None for s in found.samples if s.defective)
    with pytest.raises(UsageError, match="broken: no such folder"):
        given_layout(root, "fine", ["broken"], None, None)
    with pytest.raises(UsageError, match="--normal and --abnormal"):
        given_layout(root, None, [], "truth", None)


def test_products_side_by_side_are_categories(tmp_path, pictures):
    for name in ("nut", "bolt"):
        write_layout("folder", tmp_path, name, pictures)
    assert [c.name for c in load_categories("folder", tmp_path)] == ["bolt", "nut"]
    assert [c.name for c in load_categories("folder", tmp_path, ["nut"])] == ["nut"]


def test_a_changed_image_changes_the_digest(own):
    (category,) = load_categories("folder", own)
    before = digest(category)
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(own / "good/001.jpg")
    assert digest(category) != before


class TestMasks:
    def save(self, tmp_path, values) -> Path:
        path = tmp_path / "mask.png"
        Image.fromarray(np.array(values, np.uint8)).save(path)
        return path

    def test_any_number_but_zero_is_defective(self, tmp_path):
        mask = read_mask(self.save(tmp_path, [[0, 1], [2, 3]]), 2, 2)
        assert mask.pixels.tolist() == [[False, True], [True, True]]
        assert not mask.grey

    def test_shades_of_grey_are_cut_in_the_middle_and_told(self, tmp_path):
        shades = np.arange(0, 256, 5).reshape(4, 13)
        mask = read_mask(self.save(tmp_path, shades), 4, 13)
        assert (mask.pixels == (shades > 127)).all()
        assert mask.grey

    def test_colours_and_one_bit_are_read(self, tmp_path):
        path = tmp_path / "mask.png"
        Image.new("RGB", (3, 2), (255, 0, 0)).save(path)
        assert read_mask(path, 2, 3).pixels.all()
        Image.new("1", (3, 2), 1).save(path)
        assert read_mask(path, 2, 3).pixels.all()

    def test_another_size_and_a_damaged_file_are_errors(self, tmp_path):
        path = self.save(tmp_path, [[0, 1], [2, 3]])
        with pytest.raises(ImageError, match="is 2×2 pixels and the image 4×2"):
            read_mask(path, 2, 4)
        path.write_bytes(b"not a picture")
        with pytest.raises(ImageError, match="cannot be read"):
            read_mask(path, 2, 2)

    def test_fitting_keeps_pixel_centres(self):
        mask = np.zeros((4, 4), bool)
        mask[1, 2] = True
        assert fit_mask(mask, 2, 2).tolist() == [[False, False], [False, False]]
        assert fit_mask(mask, 8, 8).sum() == 4
