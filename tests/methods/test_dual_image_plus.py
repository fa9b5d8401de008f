"""Dual-Image+: an adapted map beside the joint one, with everything an adaptation must not do."""

import pytest
import torch
from torch.nn import functional as F

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
    assert (losses[-1] < losses[0] - 0.02).all()


def test_zero_epochs_are_dual_image(detect, photos):
    """The adapted map has Dual-Image's temperature and fusion, so that only the adaptation changes it."""
    plus = detect(make_method("dual-image+", {"epochs": 0}), photos)
    torch.testing.assert_close(plus.map, detect(make_method("dual-image"), photos).map, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rule", ["text-change", "distance", "joint"])
def test_masks_are_predicted_by_the_chosen_rule(rule):
    """Two patches, of which the copy's second one turned from normal to abnormal and to the opposite side."""
    images = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    copies = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    logits, others = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.0], [0.0, 4.0]]])
    found = make_method("dual-image+", {"mask_rule": rule}).predict_masks(logits, others, images, copies)[0]
    sigmoid = torch.tensor([-2.0, 2.0, 0.0, 4.0]).sigmoid()
    expected = {
        "text-change": sigmoid[:2],
        "distance": torch.tensor([0.0, 1.0]),
        "joint": (sigmoid[2:] + torch.tensor([0.0, 1.0])) / 2,
    }
    torch.testing.assert_close(found, expected[rule])


def test_losses_and_weights_are_those_of_autograd_and_adamw(backbone, anchors, photos):
    """An independent loop: one image, one nn.Linear, torch's own functions."""
    from .conftest import SIZE, MethodContext

    method = make_method("dual-image+", {"epochs": 4})
    rows = list(range(2))
    with torch.inference_mode():
        features = backbone.encode(photos[:2], method.request())
        context = MethodContext(anchors, (SIZE, SIZE), rows, backbone, photos[:2], pool_index=rows)
        tokens = method.text_tokens(features)
        corrupted, shares = method.corrupt(features, context)
        joint = torch.rand(tokens.shape[:2], generator=torch.Generator().manual_seed(0))
        found = method.adapt(tokens, joint, corrupted, shares, context)
    for i in rows:
        layer = torch.nn.Linear(tokens.shape[-1], tokens.shape[-1])
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=method.learning_rate, weight_decay=1e-2)
        unit, copy = (F.normalize(t.clone(), dim=-1) for t in (tokens[i], corrupted[i, 0]))
        target, mask, pair = joint[i].clone(), shares[i, 0].clone(), anchors.pair.clone()
        for step in range(4):
            adapted, other = unit + layer(unit), copy + layer(copy)
            logits = F.cosine_similarity(adapted[:, None], pair[None], dim=-1) / method.training_temperature
            align = F.cross_entropy(logits, torch.stack([1 - target, target], -1))
            p = ((1 - F.cosine_similarity(adapted, other, dim=-1)) / 2).clamp(1e-6, 1 - 1e-6)
            focal = -(mask * (1 - p) ** 2 * p.log() + (1 - mask) * p**2 * (1 - p).log()).mean()
            dice = 1 - (2 * (p * mask).sum() + 1) / ((p**2).sum() + (mask**2).sum() + 1)
            loss = align + focal + dice
            assert found.losses[step, i].item() == pytest.approx(loss.item(), abs=2e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(found.layers.weight[i], layer.weight.detach(), rtol=0, atol=2e-4)


def test_image_scores_follow_the_chosen_rule(detect, photos):
    found = {
        rule: detect(make_method("dual-image", {"image_rule": rule}), photos)
        for rule in ("mean", "map", "text")
    }
    text = detect(make_method("anoclip"), photos).image
    torch.testing.assert_close(found["text"].image, text, rtol=0, atol=2e-6)
    assert torch.equal(found["mean"].map, found["map"].map)
    assert (found["map"].image >= found["map"].map.amax((1, 2)) - 1e-6).all()  # before smoothing


def test_a_loss_that_diverges_gives_the_joint_map_and_says_so(detect, photos):
    diverged = detect(make_method("dual-image+", {"learning_rate": 1e30}), photos[:4])
    plain = detect(make_method("dual-image"), photos[:4])
    torch.testing.assert_close(diverged.map, plain.map)
    assert all("diverged" in note[0] for note in diverged.notes)


def test_identical_images_give_finite_maps(detect, photos):
    scores = detect(make_method("dual-image+"), photos[:1].repeat(4, 1, 1, 1), identify=False)
    assert scores.map.isfinite().all()
    assert scores.notes == [()] * 4


@pytest.mark.parametrize(
    "settings",
    [{"anomalies": "scratch"}, {"copies": 0}, {"epochs": -2}, {"anomalies": "draem"}, {"textures": "here"}],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError):
        make_method("dual-image+", settings)
