"""Dual-Image+: an adapted map beside the joint one, with everything an adaptation must not do."""

import pytest
import torch

from clipspect.errors import UsageError
from clipspect.registry import make_method


@pytest.mark.parametrize("settings", [{}, {"path": "ordinary", "anomalies": "perlin", "copies": 2}])
def test_scores_depend_neither_on_batch_nor_on_order(detect, photos, settings):
    method = make_method("dual-image+", settings)
    whole = detect(method, photos, batch=6)
    for batch, order in ((1, None), (4, [5, 3, 1, 0, 2, 4])):
        other = detect(method, photos, batch=batch, order=order)
        torch.testing.assert_close(other.map, whole.map, rtol=0, atol=5e-6)
        torch.testing.assert_close(other.image, whole.image, rtol=0, atol=5e-6)


def test_image_scores_are_dual_images_and_no_weight_changes(detect, backbone, photos):
    before = {name: tensor.clone() for name, tensor in backbone._model.state_dict().items()}
    plus, plain = (detect(make_method(name), photos) for name in ("dual-image+", "dual-image"))
    assert torch.equal(plus.image, plain.image)
    assert (plus.map - plain.map).abs().max() > 1e-3
    assert plus.map.grad_fn is None
    assert plus.map.min() >= 0
    assert plus.map.max() <= 1
    assert all(torch.equal(before[name], t) for name, t in backbone._model.state_dict().items())


def test_training_lowers_the_loss_on_every_image(backbone, anchors, photos):
    from .conftest import SIZE, MethodContext

    method = make_method("dual-image+", {"epochs": 12, "learning_rate": 1e-3})
    with torch.inference_mode():
        features = backbone.encode(photos, method.request())
        context = MethodContext(
            anchors, (SIZE, SIZE), list(range(6)), backbone, photos, pool_index=list(range(6))
        )
        tokens = method.text_tokens(features)
        corrupted, shares = method.corrupt(features, context)
        joint = torch.full(tokens.shape[:2], 0.3)
        losses = method.adapt(tokens, joint, corrupted, shares, context).losses
    assert shares.max() > 0.5
    assert (losses[-1] < losses[0] - 0.05).all()


def test_a_loss_that_diverges_gives_the_joint_map_and_says_so(detect, photos):
    diverged = detect(make_method("dual-image+", {"learning_rate": 1e30}), photos[:4])
    plain = detect(make_method("dual-image"), photos[:4])
    torch.testing.assert_close(diverged.map, plain.map)
    assert all("diverged" in note[0] for note in diverged.notes)


def test_identical_images_give_finite_maps(detect, photos):
    scores = detect(make_method("dual-image+"), photos[:1].repeat(4, 1, 1, 1), identify=False)
    assert scores.map.isfinite().all()
    assert scores.notes == [()] * 4


@pytest.mark.parametrize("settings", [{"anomalies": "scratch"}, {"copies": 0}, {"epochs": -2}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError):
        make_method("dual-image+", settings)
