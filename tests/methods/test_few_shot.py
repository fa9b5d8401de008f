"""Few-shot methods without text: references, rotations, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clipspect
from clipspect.backbones.sources import Sources
from clipspect.backbones.views import rotate
from clipspect.errors import UsageError
from clipspect.methods import fast_search
from clipspect.methods.few_shot import coreset, gaussian_smooth, highest_mean
from clipspect.registry import make_method

FEW_SHOT = ["anomaly-dino", "subspace"]


@pytest.mark.parametrize("name", FEW_SHOT)
def test_one_reference_suffices(detect, photos, name):
    scores = detect(make_method(name), photos[:2], reference_images=photos[2:3])
    assert scores.map.isfinite().all()
    assert scores.map.max() > scores.map.min()


@pytest.mark.parametrize("name", FEW_SHOT)
def test_an_image_among_its_references_is_not_compared_with_itself(detect, photos, name):
    among = detect(make_method(name), photos[:1], reference_images=photos[:3])
    without = detect(make_method(name), photos[:1], reference_images=photos[1:3])
    torch.testing.assert_close(among.map, without.map, rtol=0, atol=1e-5)
    torch.testing.assert_close(among.image, without.image, rtol=0, atol=1e-5)
    alone = detect(make_method(name), photos[:1], reference_images=photos[:1])
    assert "only reference is the image itself" in alone.notes[0][0]


@pytest.mark.parametrize("name", FEW_SHOT)
def test_each_image_may_have_a_reference_of_its_own(detect, photos, name):
    paired = detect(make_method(name), photos[:2], paired=photos[2:4])
    for i in range(2):
        single = detect(make_method(name), photos[i : i + 1], reference_images=photos[2 + i : 3 + i])
        torch.testing.assert_close(paired.map[i], single.map[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_without_references_the_error_names_the_option(detect, photos, name):
    with pytest.raises(UsageError, match="--reference"):
        detect(make_method(name), photos[:1])


@pytest.mark.parametrize("name", FEW_SHOT)
def test_references_are_encoded_with_their_rotations(small_model, plates, name):
    detector = clipspect.load(name, str(small_model), device="cpu", settings={"rotations": "4"})
    paths = sorted(plates.rglob("*.png"))
    references = detector.encode_references(paths[:2])
    assert len(references) == 8
    assert len(set(references.sources.hashes)) == 2
    found = detector.detect(paths[:4], "plate", references=references)
    assert all(d.error is None and np.isfinite(d.anomaly_map).all() for d in found)
    other = clipspect.load(name, str(small_model), device="cpu", settings={"rotations": "1"})
    assert len(other.encode_references(paths[:2])) == 2


@pytest.mark.parametrize("name", FEW_SHOT)
def test_known_good_images_are_rotated_as_references_are(small_model, plates, name):
    paths = sorted(plates.rglob("*.png"))
    detector = clipspect.load(name, str(small_model), device="cpu", settings={"rotations": 4})
    good = detector.calibrate(paths[:4], "plate")
    assert len(good.pool) == 16
    explicit = detector.detect(paths[4:7], "plate", references=detector.encode_references(paths[:4]))
    found = detector.detect(paths[4:7], "plate", good=good)
    np.testing.assert_allclose([d.raw_score for d in found], [d.raw_score for d in explicit], atol=1e-6)
    upright = clipspect.load(name, str(small_model), device="cpu", settings={"rotations": 1})
    assert len(upright.calibrate(paths[:4], "plate").pool) == 4


def test_each_tile_of_a_tiled_reference_is_rotated_once():
    sources = Sources(("a",) * 9 + ("b",) * 2 + ("c",), (*range(9), 0, 1, 0))
    turns = sources.rotated_rows(8)
    assert len(turns) == 7
    rows = [row for turn in turns for row in turn]
    assert sorted(row for row in rows if row < 9) == list(range(9))
    assert sorted(row for row in rows if row in (9, 10)) == [9] * 3 + [10] * 4
    assert rows.count(11) == 7
    assert sources.rotated_rows(1) == []


def test_tiles_of_one_image_share_one_subspace(backbone, photos):
    method = make_method("subspace", {"rotations": 1})
    features = backbone.encode(photos[:5], method.request())
    known = method.prepare_references(features)
    rows = (0, 2, 3)
    first = method.without(known, rows)
    assert method.without(known, rows) is first
    expected = method.prepare_references(features[list(rows)]).whole
    torch.testing.assert_close(first.eigenvalues, expected.eigenvalues)
    for left_out in range(4):
        method.without(known, tuple(row for row in range(5) if row != left_out))
    assert len(known.fits) == 4
    assert rows not in known.fits


def test_a_rotated_part_matches_its_rotated_reference(detect, photos):
    turned = rotate(photos[:1], torch.pi / 2)
    torch.testing.assert_close(turned, torch.rot90(photos[:1], 1, (-2, -1)), rtol=0, atol=1e-4)
    method = make_method("anomaly-dino")
    query = turned + 0.01  # another image of the same part
    plain = detect(method, query, reference_images=photos[:1])
    with_copy = detect(method, query, reference_images=torch.cat([photos[:1], turned]))
    assert with_copy.image.item() < plain.image.item()


def test_a_coreset_covers_the_tokens():
    generator = torch.Generator().manual_seed(0)
    clusters = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    tokens = F.normalize(clusters.repeat(50, 1) + 0.01 * torch.randn(200, 16, generator=generator), dim=1)
    kept = coreset(tokens, 4)
    assert (tokens @ kept.T).amax(1).min() > 0.98
    assert torch.equal(coreset(tokens, 500), tokens)


def test_a_bounded_bank_keeps_a_coreset_of_each_image(detect, photos):
    whole = detect(make_method("anomaly-dino"), photos[:1], reference_images=photos[1:])
    method = make_method("anomaly-dino", {"bank_limit": 1000})
    references = torch.cat([photos[1:]] * 8)  # 40 images of 64 patches
    bounded = detect(method, photos[:1], reference_images=references)
    assert (bounded.image >= whole.image - 1e-6).all()


MANY_REFERENCES = [
    ("dual-image", {"output": "visual"}),
    ("dual-image", {"output": "visual", "explicit": "mean"}),
    ("anomaly-dino", {}),
]


@pytest.mark.parametrize(("name", "settings"), MANY_REFERENCES)
def test_many_references_are_searched_fast_with_almost_the_same_scores(
    detect, photos, monkeypatch, name, settings
):
    exact, fast, auto = (make_method(name, {**settings, "search": s}) for s in ("exact", "fast", "auto"))
    among = detect(exact, photos[:2], reference_images=photos)  # neither is compared with itself
    found = detect(fast, photos[:2], reference_images=photos)
    torch.testing.assert_close(found.map, among.map, rtol=0, atol=0.01)
    torch.testing.assert_close(found.image, among.image, rtol=0, atol=0.01)
    assert among.map.max() > 1e-3
    monkeypatch.setattr(fast_search, "COLUMNS", 3)  # few components, so that fast and exact differ
    rough = detect(fast, photos[:2], reference_images=photos)
    assert not torch.equal(rough.map, found.map)
    assert torch.equal(detect(auto, photos[:2], reference_images=photos).map, among.map)
    monkeypatch.setattr(fast_search, "AUTO_EXACT", len(photos) - 1)
    assert torch.equal(detect(auto, photos[:2], reference_images=photos).map, rough.map)


@pytest.mark.parametrize(("name", "settings"), MANY_REFERENCES)
def test_a_fast_search_notes_an_image_without_other_references(detect, photos, name, settings):
    method = make_method(name, {**settings, "search": "fast"})
    scores = detect(method, photos[:2], reference_images=photos[:1])
    assert "only reference is the image itself" in scores.notes[0][0]
    assert scores.notes[1] == ()


def test_a_fast_search_finds_one_neighbor():
    with pytest.raises(UsageError, match="search=exact"):
        make_method("anomaly-dino", {"neighbors": 3, "search": "fast"})


def test_the_highest_share_is_rounded_down():
    values = torch.arange(10.0)[None]
    assert highest_mean(values, 0.2).item() == 8.5
    assert highest_mean(values, 0.29).item() == 8.5
    assert highest_mean(values, 0.01).item() == 9


@pytest.mark.parametrize("repeat_edge", [True, False])
def test_smoothing_mirrors_at_borders_of_any_size(repeat_edge):
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = gaussian_smooth(maps, 4.0, 16, repeat_edge=repeat_edge)
    mode = "reflect" if repeat_edge else "mirror"
    expected = np.stack([gaussian_filter(m.numpy(), 4.0, mode=mode, truncate=4.0) for m in maps])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_settings_of_the_few_shot_methods_are_checked():
    for name, settings in (
        ("subspace", {"blocks_to": 0.2}),
        ("subspace", {"variance": 1.0}),
        ("anomaly-dino", {"foreground": "yes"}),
        ("anomaly-dino", {"rotations": 0}),
    ):
        with pytest.raises(UsageError):
            make_method(name, settings)
