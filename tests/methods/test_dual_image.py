"""Dual-Image: pairs inside a set, explicit references, and what each half contributes."""

import pytest
import torch

from clipspect.errors import ReferencesError, UsageError
from clipspect.methods.visual import near_patches, template_distances
from clipspect.registry import make_method

from .conftest import make_backbone, make_images

METHODS = [("dual-image", {}), ("dual-image", {"pairing": "nearest", "references": 3}), ("mutual", {})]


def spot_stands_out(scores, photos):
    """How much higher a map is on the bright spot than elsewhere, mean over the images that have one."""
    lifts = []
    for photo, score_map in zip(photos[1::2], scores.map[1::2], strict=True):
        spot = photo.amin(0) > 1.6
        lifts.append((score_map[spot].mean() - score_map[~spot].mean()) / score_map.std())
    return torch.stack(lifts).mean().item()


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_scores_depend_neither_on_batch_nor_on_order(detect, photos, name, settings):
    method = make_method(name, settings)
    whole = detect(method, photos, batch=6)
    for batch, order in ((1, None), (4, [5, 3, 1, 0, 2, 4])):
        other = detect(method, photos, batch=batch, order=order)
        torch.testing.assert_close(other.map, whole.map, rtol=0, atol=2e-6)
        torch.testing.assert_close(other.image, whole.image, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "settings"), METHODS)
@pytest.mark.parametrize("fusion", ["mean", "min-max", "rank", "z-score", "temperature"])
def test_identical_images_have_no_visual_difference_and_no_nan(detect, photos, name, settings, fusion):
    same = photos[:1].repeat(5, 1, 1, 1)
    joint = detect(make_method(name, {**settings, "fusion": fusion}), same, identify=False)
    visual = detect(make_method(name, {**settings, "output": "visual"}), same, identify=False)
    assert visual.map.max() < 1e-6
    # copies may differ by rounding, and a rank then by the share of the pool that the five copies of a value are
    tolerance = 5 / 64 if fusion == "rank" else 1e-5
    for values in (joint.map, joint.image):
        assert values.isfinite().all()
        assert values.min() >= 0
        assert values.max() <= 1
        torch.testing.assert_close(values, values[:1].expand_as(values), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["dual-image", "dual-image+", "mutual"])
def test_a_set_of_copies_is_refused(detect, photos, name):
    with pytest.raises(UsageError, match="only itself or a copy of it"):
        detect(make_method(name), photos[:1].repeat(5, 1, 1, 1))


@pytest.mark.parametrize("name", ["dual-image", "mutual"])
def test_copies_of_an_image_change_no_score(detect, photos, name):
    method = make_method(name, {"output": "visual", "fusion": "mean"})
    alone = detect(method, photos[:4])
    copied = detect(method, torch.cat([photos[:4], photos[:1].repeat(3, 1, 1, 1)]), pool=7)
    torch.testing.assert_close(copied.map[:1], alone.map[:1], rtol=0, atol=2e-6)
    torch.testing.assert_close(copied.map[4:], alone.map[:1].expand(3, -1, -1), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_what_other_images_lack_stands_out_even_with_random_weights(detect, photos, name, settings):
    visual = detect(make_method(name, {**settings, "output": "visual"}), photos)
    assert spot_stands_out(visual, photos) > 0.8


@pytest.mark.parametrize("name", ["dual-image", "mutual"])
def test_one_image_alone_needs_a_pair(detect, photos, name):
    with pytest.raises(UsageError, match="there is only one"):
        detect(make_method(name), photos[:1])


def test_one_image_with_a_reference_is_enough(detect, photos):
    scores = detect(make_method("dual-image", {"output": "visual"}), photos[1:2], reference_images=photos[:1])
    pair = detect(make_method("dual-image", {"output": "visual"}), photos[:2])
    torch.testing.assert_close(scores.map[0], pair.map[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["dual-image", "mutual"])
def test_the_image_as_its_own_only_reference_is_refused(detect, photos, name):
    with pytest.raises(UsageError, match="only itself or a copy of it"):
        detect(make_method(name), photos[:1], reference_images=photos[:1])


@pytest.mark.parametrize("name", ["dual-image", "dual-image+", "mutual", "winclip+"])
def test_an_image_that_is_the_only_reference_of_a_set_says_so_in_its_row(detect, photos, name):
    scores = detect(make_method(name), photos[:3], reference_images=photos[1:2], batch=1)
    assert [len(notes) for notes in scores.notes] == [0, 1, 0]
    assert "only reference is the image itself" in scores.notes[1][0]


def test_an_image_among_the_references_is_not_compared_with_itself(detect, photos):
    method = make_method("dual-image", {"output": "visual"})
    among = detect(method, photos[:1], reference_images=photos[:3])
    without = detect(method, photos[:1], reference_images=photos[1:3])
    torch.testing.assert_close(among.map, without.map, rtol=0, atol=2e-6)


def test_each_image_can_bring_its_own_reference(detect, photos):
    method = make_method("dual-image", {"output": "visual"})
    paired = detect(method, photos[:3], paired=photos[3:], batch=2)
    alone = detect(method, photos[1:2], reference_images=photos[4:5])
    torch.testing.assert_close(paired.map[1], alone.map[0], rtol=0, atol=2e-6)


def template_tokens(side, dim=48):
    """(N, D) unit tokens of a template, all unlike, and their grid."""
    generator = torch.Generator().manual_seed(2)
    return torch.nn.functional.normalize(torch.randn(side * side, dim, generator=generator), dim=-1), (
        side,
        side,
    )


def test_a_missing_part_is_not_excused_by_a_like_one_elsewhere():
    template, grid = template_tokens(32)
    image = template.clone()
    image[5 * 32 + 5] = template[28 * 32 + 28]  # what is there belongs elsewhere
    image[9 * 32 + 9] = template[10 * 32 + 11]  # moved by two patches at most
    anywhere = template_distances(image, template, near_patches(grid, 0, image.device))
    assert anywhere.max() < 1e-6
    near = template_distances(image, template, near_patches(grid, 0.0625, image.device))
    assert near[5 * 32 + 5] == pytest.approx(0.02, abs=1e-6)
    near[5 * 32 + 5] = 0
    assert near.max() < 1e-6


def test_a_template_that_does_not_lie_on_the_image_costs_little():
    template, grid = template_tokens(32)
    image = template.unflatten(0, grid).roll((9, 0), (0, 1)).flatten(0, 1)
    assert template_distances(
        image, template, near_patches(grid, 0.0625, image.device)
    ).max() == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize("side", [8, 15])
def test_on_a_coarse_grid_all_patches_of_a_template_count_alike(side):
    template, grid = template_tokens(side)
    image = template.flip(0)
    assert template_distances(image, template, near_patches(grid, 0.0625, image.device)).max() < 1e-6


def test_references_of_another_size_are_refused(detect, backbone, photos):
    method = make_method("dual-image")
    small = backbone.encode(photos[:, :, :48, :48], method.request())
    with pytest.raises(ReferencesError, match=r"\(6, 6\) patches, the images \(8, 8\)"):
        detect(method, photos, references=small)


def test_more_references_than_others_are_all_used(detect, photos):
    many, all_others = (
        detect(make_method("dual-image", {"references": k, "output": "visual"}), photos) for k in (100, 5)
    )
    assert torch.equal(many.map, all_others.map)


def test_a_text_weight_of_one_and_plain_mean_is_the_text_alone(detect, photos):
    text = detect(make_method("dual-image", {"output": "text"}), photos)
    weighted = detect(make_method("dual-image", {"text_weight": 1.0, "fusion": "mean"}), photos)
    anoclip = detect(make_method("anoclip"), photos)
    torch.testing.assert_close(text.map, anoclip.map)
    torch.testing.assert_close(weighted.map, anoclip.map)
    torch.testing.assert_close(weighted.image, anoclip.image)


def test_the_plain_mean_is_half_text_and_half_visual(detect, photos):
    text, visual, joint = (
        detect(make_method("dual-image", {"output": o, "fusion": "mean"}), photos)
        for o in ("text", "visual", "joint")
    )
    torch.testing.assert_close(joint.map, (text.map + visual.map) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(joint.image, (text.image + visual.image) / 2, rtol=0, atol=1e-6)


def test_every_image_is_encoded_once(anchors, photos):
    backbone, seen = make_backbone(), []

    class Counting:
        depth = backbone.depth

        def encode(self, images, request):
            seen.extend(images.sum((1, 2, 3)).tolist())
            return backbone.encode(images, request)

    from .conftest import run_set

    run_set(Counting(), anchors, make_method("dual-image", {"references": 4}), photos)
    assert sorted(seen) == sorted(photos.sum((1, 2, 3)).tolist())


def test_images_outside_the_pool_get_the_same_scale_and_references(backbone, anchors):
    """A pool is a sample: others are scored against it, and nothing of it changes."""
    from .conftest import run_set

    photos = make_images(8, seed=2)
    method = make_method("dual-image", {"references": 2})
    whole = run_set(backbone, anchors, method, photos, pool=5, batch=8)
    parts = run_set(backbone, anchors, method, photos, pool=5, batch=3)
    assert whole.map.isfinite().all()
    torch.testing.assert_close(whole.map, parts.map, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "settings",
    [{"pairing": "best"}, {"fusion": "sum"}, {"references": 0}, {"text_weight": 2.0}, {"blocks_from": 1.5}],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError):
        make_method("dual-image", settings)
