"""Pseudo-anomalies: from the image alone, visible exactly where the mask says, repeatable."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipspect.errors import UsageError
from clipspect.methods.tta.pseudo_anomalies import TextureFolder, corrupted_copies, perlin_noise
from clipspect.registry import make_method

KINDS = ["mixed", "cut-paste", "perlin", "noise"]


@pytest.fixture(scope="module")
def images():
    y, x = torch.meshgrid(torch.linspace(0, 12, 64), torch.linspace(0, 9, 64), indexing="ij")
    noise = 0.2 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.sin(x + 2 * torch.sin(y)) + noise


@pytest.mark.parametrize("kind", KINDS)
def test_only_masked_pixels_change_visibly(images, kind):
    copies, masks = corrupted_copies(images, kind, 9, [1, 2])
    assert copies.shape == (2, 9, 3, 64, 64)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    change = (copies - images[:, None]).abs().amax(2)
    assert change[masks == 0].max() <= 0.1
    assert change[masks == 1].min() > 0.1
    share = masks.mean((2, 3))
    assert (share > 0).float().mean() > 0.9
    assert share.max() <= (0.4 if kind == "mixed" else 0.14)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_depend_on_the_images_own_seed_alone(images, kind):
    both = corrupted_copies(images, kind, 3, [1, 2])
    second = corrupted_copies(images[1:], kind, 3, [2])
    assert all(torch.equal(b[1:], s) for b, s in zip(both, second, strict=True))
    other = corrupted_copies(images[1:], kind, 3, [3])
    assert not torch.equal(other[1], second[1])


def test_a_mixed_copy_carries_all_three_kinds_and_one_mask_of_them(images):
    """The draws go on from kind to kind: on the same seed the first of them is the cut-paste copy, pixel by pixel."""
    mixed, masks = (x[0] for x in corrupted_copies(images[:1], "mixed", 4, [5]))
    first, first_mask = (x[0, 0] for x in corrupted_copies(images[:1], "cut-paste", 1, [5]))
    assert masks.mean((1, 2)).min() > 3 * 0.01
    beyond = (mixed[0] - first).abs().amax(0) > 0.1  # what the two later kinds changed
    assert beyond.any()
    assert not torch.equal(masks[0], first_mask)
    noise = (mixed - images[0]).diff(dim=1).abs().amax(1) < 1e-5  # only noise changes all channels alike
    assert (noise & (masks == 1)).flatten(1).any(1).all()


def test_perlin_noise_is_smooth_and_zero_at_the_cells_corners():
    field = perlin_noise((64, 64), 4, torch.Generator().manual_seed(0))
    assert field[::16, ::16].abs().max() < 1e-6
    assert field.diff(dim=0).abs().max() < 0.15
    assert field.std() > 0.1


def test_a_flat_picture_has_no_visible_cut_paste_without_relighting():
    """A flat image has nothing to cut: what changes is its light, and the mask says where."""
    flat = torch.zeros(1, 3, 32, 32)
    copies, masks = corrupted_copies(flat, "cut-paste", 5, [1])
    assert copies.isfinite().all()
    assert torch.equal((copies.abs().amax(2) > 0.1).float(), masks)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_chosen_by_name(kind):
    assert make_method("dual-image+", {"anomalies": kind}).settings()["anomalies"] == kind


@pytest.fixture
def textures(tmp_path):
    """A folder with one red texture, normalized by (x − 0.5) / 0.5."""
    Image.fromarray(np.full((40, 30, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    return TextureFolder(tmp_path, (0.5,) * 3, (0.5,) * 3)


def test_draem_fills_the_region_from_the_folder(images, textures):
    copies, masks = corrupted_copies(images, "draem", 6, [1, 2], textures)
    change = copies - images[:, None]
    assert change.abs().amax(2)[masks == 0].max() <= 0.1
    inside = masks > 0
    assert inside.any()
    filling = copies[:, :, 0][inside].mean() - copies[:, :, 1][inside].mean()
    assert filling > 0.2  # red above green, which the images are not
    again = corrupted_copies(images, "draem", 6, [1, 2], textures)
    assert torch.equal(again[0], copies)


def test_a_folder_without_textures_is_refused(tmp_path, images):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "no images")):
        with pytest.raises(UsageError, match=message):
            corrupted_copies(images, "draem", 1, [1, 2], TextureFolder(folder, (0.5,) * 3, (0.5,) * 3))
