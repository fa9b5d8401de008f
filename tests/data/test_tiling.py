"""Tiles cover an image exactly, and their maps come back as one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipspect.data.tiling import Tile, blend_tiles, plan_tiles


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (80, 112, [Tile(0, 0, 80, 80), Tile(0, 32, 80, 80)]),
        (112, 80, [Tile(0, 0, 80, 80), Tile(32, 0, 80, 80)]),
        (80, 160, [Tile(0, 0, 80, 80), Tile(0, 80, 80, 80)]),
        (80, 80, [Tile(0, 0, 80, 80)]),
        (80, 200, [Tile(0, 0, 80, 80), Tile(0, 60, 80, 80), Tile(0, 120, 80, 80)]),
    ],
)
def test_square_tiles_are_the_fewest_that_cover(height, width, expected):
    assert plan_tiles(height, width, "square") == expected


def test_an_image_smaller_than_a_tile_is_one_tile():
    assert plan_tiles(30, 50, 64) == [Tile(0, 0, 30, 50)]
    assert plan_tiles(30, 100, 64) == [Tile(0, 0, 30, 64), Tile(0, 36, 30, 64)]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 200), width=st.integers(1, 200), side=st.integers(4, 200),
    overlap=st.floats(0, 0.8),
)  # fmt: skip
def test_tiles_cover_the_image_overlap_enough_and_never_leave_it(height, width, side, overlap):
    tiles = plan_tiles(height, width, side, overlap)
    covered = np.zeros((height, width), bool)
    for tile in tiles:
        assert tile.height == min(side, height)
        assert tile.width == min(side, width)
        assert tile.top + tile.height <= height
        assert tile.left + tile.width <= width
        covered[tile.slices] = True
    assert covered.all()
    tops = sorted({tile.top for tile in tiles})
    stride = side * (1 - overlap)
    assert all(later - earlier <= stride + 1 for earlier, later in pairwise(tops))


@pytest.mark.parametrize(("side", "overlap"), [(0, 0.25), (64, 1.0), (64, -0.1)])
def test_impossible_tiles_are_refused(side, overlap):
    with pytest.raises(ValueError, match="wanted is side ≥ 1"):
        plan_tiles(100, 100, side, overlap)


@pytest.mark.parametrize("taper", [True, False])
def test_tiles_cut_from_one_map_blend_back_to_it(taper):
    whole = np.random.default_rng(0).random((70, 130), np.float32)
    tiles = plan_tiles(70, 130, 48)
    blended = blend_tiles([whole[tile.slices] for tile in tiles], tiles, (70, 130), taper=taper)
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, whole, atol=1e-6)


def test_without_taper_an_overlap_is_the_plain_average():
    tiles = plan_tiles(80, 112, "square")
    maps = [np.full((80, 80), value, np.float32) for value in (0.2, 0.6)]
    blended = blend_tiles(maps, tiles, (80, 112), taper=False)
    np.testing.assert_allclose(
        blended[0, [0, 31, 32, 79, 80, 111]], [0.2, 0.2, 0.4, 0.4, 0.6, 0.6], atol=1e-6
    )


def test_with_taper_no_seam_shows():
    tiles = plan_tiles(80, 112, "square")
    maps = [np.full((80, 80), value, np.float32) for value in (0.0, 1.0)]
    steps = np.diff(blend_tiles(maps, tiles, (80, 112))[40])
    assert steps.max() < 0.05
    assert steps.min() >= 0


def test_a_gap_and_a_map_of_another_size_are_refused():
    with pytest.raises(ValueError, match="uncovered"):
        blend_tiles([np.zeros((4, 4), np.float32)], [Tile(0, 0, 4, 4)], (4, 5))
    with pytest.raises(ValueError, match="shape"):
        blend_tiles([np.zeros((4, 3), np.float32)], [Tile(0, 0, 4, 4)], (4, 4))
