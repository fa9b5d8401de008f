"""References as a file: what comes back is what was stored, and nothing unfit is used."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.errors import ReferencesError
from clipspect.reference_file import Manifest, load_references, save_references

REQUEST = FeatureRequest(
    value_blocks=frozenset([-1]), value_spans=frozenset([(0.5, 1.0)]), windows=frozenset([2])
)
MANIFEST = Manifest("bottle", "small", "f00d", 64, "squash, bicubic", {"a.png": "1", "b.png": "2"}, 2)
IN_USE = {
    "object": "bottle",
    "model": "small",
    "fingerprint": "f00d",
    "image_size": 64,
    "preparation": "squash, bicubic",
    "request": REQUEST,
}


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return Features(
        draw(2, 8), (3, 3), 4, {3: draw(2, 3, 3, 8), 4: draw(2, 3, 3, 8)}, windows={2: draw(2, 4, 8)}
    )


@pytest.fixture
def stored(tmp_path, features):
    path = tmp_path / "new folder" / "bottle.refs"
    save_references(path, features, MANIFEST, REQUEST)
    return path


def test_everything_comes_back_to_the_bit(stored, features):
    references = load_references(stored)
    again = references.check(stored, **IN_USE)
    assert references.manifest == MANIFEST
    assert (again.grid, again.depth) == ((3, 3), 4)
    assert torch.equal(again.image, features.image)
    assert all(torch.equal(again.values(b), features.values(b)) for b in (3, 4))
    assert torch.equal(again.windows[2], features.windows[2])
    assert sorted(p.name for p in stored.parent.iterdir()) == ["bottle.refs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "beef", "model": "large"}, "another backbone .small; in use: large"),
        ({"object": "capsule"}, "another object: 'bottle', not 'capsule'"),
        ({"image_size": 128}, "another image size: 64, not 128"),
        ({"preparation": "pad, bicubic"}, "another preparation of images"),
        ({"request": FeatureRequest(ordinary_blocks=frozenset([-1]))}, "it lacks ordinary tokens of block 4"),
        ({"request": FeatureRequest(windows=frozenset([2, 3]))}, "it lacks windows of 3 patches"),
        ({"request": replace(REQUEST, start_block=1)}, "start at block 1"),
        ({"request": FeatureRequest(unprojected=True)}, "before the projection"),
    ],
)
def test_references_of_another_kind_are_refused(stored, change, message):
    with pytest.raises(ReferencesError, match=message):
        load_references(stored).check(stored, **{**IN_USE, **change})


@pytest.mark.parametrize("where", ["header", "features"])
def test_one_flipped_bit_is_noticed(stored, where):
    data = bytearray(stored.read_bytes())
    place = data.index(b"bottle") if where == "header" else len(data) - 3
    data[place] ^= 1
    stored.write_bytes(data)
    with pytest.raises(ReferencesError, match="damaged"):
        load_references(stored)


def test_a_method_that_needs_less_can_use_them(stored):
    load_references(stored).check(
        stored, **{**IN_USE, "request": FeatureRequest(value_blocks=frozenset([4]))}
    )


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "text", "foreign", "not finite", "header"]
)
def test_a_file_that_is_damaged_or_foreign_is_refused(tmp_path, stored, features, damage):
    path, data = tmp_path / "x.refs", stored.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(data[:-20])
    elif damage == "text":
        path.write_text("references " * 50, encoding="utf-8")
    elif damage == "foreign":
        save_file({"image": torch.zeros(1, 2)}, path)
    elif damage == "not finite":
        save_references(path, replace(features, image=features.image / 0), MANIFEST, REQUEST)
    elif damage == "header":
        path.write_bytes(data.replace(b'"depth', b'"depht').replace(b'\\"depth', b'\\"depht'))
    with pytest.raises(ReferencesError, match=r"x\.refs"):
        load_references(path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path, features):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReferencesError, match="cannot be written"):
        save_references(tmp_path / "file" / "x.refs", features, MANIFEST, REQUEST)
