"""What holds for every method in the registry, whatever it computes."""

import pytest
import torch

from clipspect.errors import ReferencesError, UsageError
from clipspect.registry import describe_settings, list_methods, make_method, method_class

REFERENCE_FREE = [name for name in list_methods() if not method_class(name).needs_references]


def options(name, photos):
    return {"reference_images": photos[-2:]} if method_class(name).needs_references else {}


@pytest.mark.parametrize("name", list_methods())
def test_scores_are_numbers_between_zero_and_one_without_a_graph(detect, backbone, photos, name):
    before = backbone.fingerprint
    scores = detect(make_method(name), photos[:4], **options(name, photos))
    for values, shape in ((scores.image, (4,)), (scores.map, (4, 64, 64))):
        assert values.shape == shape
        assert values.isfinite().all()
        assert values.min() >= 0
        assert values.max() <= 1
        assert values.grad_fn is None
        assert not values.requires_grad
    backbone._fingerprint = None  # made anew from the weights as they are now
    assert backbone.fingerprint == before


@pytest.mark.parametrize("name", list_methods())
def test_a_result_depends_neither_on_batch_nor_on_order(detect, photos, name):
    first = detect(make_method(name), photos[:4], batch=4, **options(name, photos))
    again = detect(make_method(name), photos[:4], batch=4, **options(name, photos))
    assert torch.equal(first.map, again.map)
    other = detect(make_method(name), photos[:4], batch=3, order=[2, 0, 3, 1], **options(name, photos))
    torch.testing.assert_close(other.map, first.map, rtol=0, atol=5e-6)
    torch.testing.assert_close(other.image, first.image, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", list_methods())
def test_identical_images_get_identical_scores(detect, photos, name):
    same = photos[:1].repeat(3, 1, 1, 1)
    scores = detect(make_method(name), same, identify=False, **options(name, photos))
    assert scores.map.isfinite().all()
    # Euclidean distances of tokens that agree but for rounding are the root of that rounding
    tolerance = 1e-3 if name == "musc" else 1e-5
    torch.testing.assert_close(scores.map, scores.map[:1].expand_as(scores.map), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", REFERENCE_FREE)
def test_methods_of_one_image_need_no_second(detect, photos, name):
    if method_class(name).scope == "set":
        with pytest.raises(UsageError, match="there is only one"):
            detect(make_method(name), photos[:1])
    else:
        assert detect(make_method(name), photos[:1]).map.shape == (1, 64, 64)


def test_winclip_plus_says_what_it_needs(detect, backbone, photos):
    method = make_method("winclip+")
    with pytest.raises(UsageError, match="--reference"):
        detect(method, photos[:1])
    small = backbone.encode(photos[:, :, :48, :48], method.request())
    with pytest.raises(ReferencesError, match="same size"):
        detect(method, photos[:1], references=small)


def test_winclip_plus_finds_no_visual_difference_to_its_own_template(detect, photos):
    zero_shot = detect(make_method("winclip"), photos[:2])
    paired = detect(make_method("winclip+"), photos[:2], paired=photos[:2])
    torch.testing.assert_close(paired.map, zero_shot.map / 2, rtol=0, atol=1e-5)


def test_winclip_plus_leaves_a_image_out_of_its_references(detect, photos):
    method = make_method("winclip+")
    among = detect(method, photos[:2], reference_images=photos[:2])
    other = detect(method, photos[:2], paired=photos[[1, 0]])
    torch.testing.assert_close(among.map, other.map, rtol=0, atol=1e-6)
    assert (among.map - detect(make_method("winclip"), photos[:2]).map / 2).max() > 1e-3


def test_clip_takes_one_sentence_or_the_ensemble():
    assert make_method("clip").prompts == "winclip"
    assert make_method("clip", {"ensemble": "false"}).prompts == "plain"


@pytest.mark.parametrize("name", list_methods())
def test_every_setting_has_a_help_text(name):
    described = describe_settings(name)
    assert described
    assert not [setting for setting, _, text in described if not text.endswith(".")]
