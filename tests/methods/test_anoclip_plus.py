"""AnoCLIP+ on images: independent of batch and order, changes no weight, survives divergence."""

import pytest
import torch

from clipspect.errors import UsageError
from clipspect.registry import make_method


def state_hash(backbone):
    return {name: tensor.clone() for name, tensor in backbone._model.state_dict().items()}


@pytest.mark.parametrize("adapter", ["text-bank", "linear"])
def test_scores_depend_neither_on_batch_nor_on_order(detect, photos, adapter):
    method = make_method("anoclip+", {"adapter": adapter})
    whole = detect(method, photos, batch=6)
    for batch, order in ((1, None), (4, [5, 3, 1, 0, 2, 4])):
        other = detect(method, photos, batch=batch, order=order)
        torch.testing.assert_close(other.map, whole.map, rtol=0, atol=1e-6)
        torch.testing.assert_close(other.image, whole.image, rtol=0, atol=1e-6)


def test_the_same_run_twice_is_the_same_to_the_bit(detect, photos):
    first, second = (detect(make_method("anoclip+"), photos) for _ in range(2))
    assert torch.equal(first.map, second.map)


def test_training_lowers_the_map_from_the_untrained_one_and_changes_no_weight(detect, backbone, photos):
    before = state_hash(backbone)
    trained = detect(make_method("anoclip+"), photos)
    untrained = detect(make_method("anoclip+", {"epochs": 0}), photos)
    plain = detect(make_method("anoclip"), photos)
    assert (trained.map - untrained.map).abs().max() > 1e-4
    assert (untrained.map - plain.map).abs().max() > 1e-4
    assert torch.equal(trained.image, plain.image)
    after = backbone._model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert not any(p.requires_grad for p in backbone._model.parameters())


def test_scores_carry_no_graph(detect, photos):
    scores = detect(make_method("anoclip+"), photos[:2])
    assert scores.map.grad_fn is None
    assert not scores.map.requires_grad


def test_a_loss_that_diverges_gives_the_zero_shot_map_and_says_so(detect, photos):
    diverged = detect(make_method("anoclip+", {"adapter": "linear", "learning_rate": 1e30}), photos[:3])
    plain = detect(make_method("anoclip"), photos[:3])
    torch.testing.assert_close(diverged.map, plain.map)
    assert all("diverged" in note[0] for note in diverged.notes)
    assert detect(make_method("anoclip+"), photos[:3]).notes == [(), (), ()]


@pytest.mark.parametrize("settings", [{"adapter": "mlp"}, {"epochs": -1}, {"learning_rate": float("nan")}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError):
        make_method("anoclip+", settings)
