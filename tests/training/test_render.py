"""The renderer: seeded, in range, and honest about what changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clipspect.errors import UsageError
from clipspect.training.render import DEFECTS, HELD_OUT, TRAINING, Canvas, draw_scenes, training_world
from clipspect.training.render.fields import grow, soften
from clipspect.training.render.large_defects import LARGE
from clipspect.training.render.objects import draw_parts, draw_pose
from clipspect.training.render.scenes import add_defects, visible_change
from clipspect.training.render.structure import STRUCTURES, Ground, add_structure
from clipspect.training.render.textures import draw_surfaces


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(Canvas(96, seed=3), 48)


def a_ground(canvas: Canvas, n: int) -> Ground:
    """Parts over a background, without structure."""
    material, names = draw_surfaces(canvas, n, TRAINING.textures, plain=0.5)
    behind, _ = draw_surfaces(canvas, n, TRAINING.textures, plain=0.5)
    picture, part, under, _ = draw_parts(
        canvas, material, behind, draw_pose(canvas, n), TRAINING.shapes, names
    )
    return Ground(picture, part, under)


@pytest.mark.parametrize("world", [TRAINING, HELD_OUT], ids=["training", "held out"])
def test_the_same_seed_draws_the_same_pixels(world):
    first, second = (draw_scenes(Canvas(64, seed=11), 12, world) for _ in range(2))
    other = draw_scenes(Canvas(64, seed=12), 12, world)
    assert torch.equal(first.defective, second.defective)
    assert torch.equal(first.mask, second.mask)
    assert (first.nouns, first.defects) == (second.nouns, second.defects)
    assert not torch.equal(first.clean, other.clean)


def test_shapes_and_ranges(scenes):
    assert scenes.clean.shape == scenes.defective.shape == (48, 3, 96, 96)
    assert scenes.mask.shape == (48, 96, 96)
    for picture in (scenes.clean, scenes.defective):
        assert torch.isfinite(picture).all()
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert set(scenes.mask.unique().tolist()) == {0.0, 1.0}
    assert all(scenes.nouns)
    assert set(scenes.defects) <= set(DEFECTS)


def test_most_defects_are_visible_and_few_cover_half_the_picture(scenes):
    area = scenes.mask.mean((1, 2))
    assert (area > 0).float().mean() > 0.8
    assert (area > 0.5).float().mean() < 0.15


def test_twins_differ_inside_the_mask_and_by_noise_outside(scenes):
    difference = soften(scenes.defective - scenes.clean, 2).abs().amax(1)
    inside = [float(d[m > 0].mean()) for d, m in zip(difference, scenes.mask, strict=True) if m.any()]
    outside = difference[grow(scenes.mask, 4) == 0]
    assert sum(inside) / len(inside) > 0.06
    assert outside.mean() < 0.012
    assert outside.quantile(0.999) < 0.08


@pytest.mark.parametrize("kind", DEFECTS)
def test_every_defect_changes_the_picture_where_it_says(kind):
    canvas = Canvas(96, seed=5)
    ground = a_ground(canvas, 12)
    picture, region = add_defects(canvas, ground, [kind] * 12)
    change = (picture - ground.picture).abs().amax(1)
    mask = visible_change(ground.picture, picture, region, torch.zeros(12, 1, 1))
    assert torch.isfinite(picture).all()
    assert (mask.flatten(1).amax(1) > 0).float().mean() >= 0.5, "hardly ever visible"
    assert change[mask > 0].mean() > 3 * change[region < 0.05].mean()


def test_what_hides_in_the_noise_is_not_in_the_mask():
    clean = torch.full((1, 3, 64, 64), 0.5)
    region = torch.zeros(1, 64, 64)
    region[:, 20:40, 20:40] = 1
    faint = clean + 0.04 * region[:, None]
    assert visible_change(clean, faint, region, torch.zeros(1, 1, 1)).sum() == 400
    assert visible_change(clean, faint, region, torch.full((1, 1, 1), 0.2)).sum() == 0
    elsewhere = visible_change(clean, faint, torch.zeros_like(region), torch.zeros(1, 1, 1))
    assert elsewhere.sum() == 0, "a change outside the defect's region is not the defect"


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_structure_is_laid_on_the_part_and_stays_a_picture(kind):
    canvas = Canvas(96, seed=4)
    surface, _ = draw_surfaces(canvas, 6, TRAINING.textures, plain=0.5)
    ground = Ground(surface.clone(), torch.ones(6, 96, 96), surface)
    add_structure(canvas, ground, {kind: replace(STRUCTURES[kind], share=1.0)})
    assert torch.isfinite(ground.picture).all()
    assert ground.picture.min() >= 0
    assert ground.picture.max() <= 1
    changed = (ground.picture - surface).abs().amax((1, 2, 3))
    assert (changed > 0.02).sum() >= 5


def test_blemishes_are_fainter_than_what_counts_as_a_defect_of_their_size():
    canvas = Canvas(128, seed=8)
    plain = torch.full((16, 3, 128, 128), 0.5)
    ground = Ground(plain.clone(), torch.ones(16, 128, 128), plain)
    add_structure(canvas, ground, {"blemishes": replace(STRUCTURES["blemishes"], share=1.0)})
    assert (ground.picture / 0.5 - 1).abs().flatten(1).quantile(0.99) < 0.25


@pytest.mark.parametrize(
    ("part", "check"),
    [
        ("objects", lambda world: world.object_share == 0),
        ("structure", lambda world: not world.structures),
        ("large defects", lambda world: not set(LARGE) & set(world.defects)),
        ("textures", lambda world: len(world.textures) == 3),
        ("camera", lambda world: not world.camera),
    ],
)
def test_a_part_of_the_renderer_can_be_left_out(part, check):
    world = training_world(part)
    assert check(world)
    assert not check(TRAINING)
    scenes = draw_scenes(Canvas(64, seed=1), 8, world)
    assert set(scenes.defects) <= set(world.defects)
    assert torch.isfinite(scenes.defective).all()


def test_an_unknown_part_is_refused_by_name():
    with pytest.raises(UsageError, match="no part 'sky'"):
        training_world("sky")


def test_held_out_kinds_are_never_trained_on():
    assert not set(TRAINING.textures) & set(HELD_OUT.textures)
    assert not set(TRAINING.shapes) & set(HELD_OUT.shapes)
    drawn = {t.tone for t in TRAINING.textures.values()} | {s.distance for s in TRAINING.shapes.values()}
    kept = {t.tone for t in HELD_OUT.textures.values()} | {s.distance for s in HELD_OUT.shapes.values()}
    assert not drawn & kept
