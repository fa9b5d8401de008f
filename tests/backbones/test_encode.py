"""What a backbone's encoding promises beside parity: any size, any block, nothing done twice, weights untouched."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

import clipspect
from clipspect.backbones.features import FeatureRequest, Features, parse_blocks
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.errors import UsageError
from clipspect.registry import make_method
from helpers.small_models import ARCHITECTURES, normalised_images

VALUE = FeatureRequest(value_blocks=frozenset([-1]))


def backbone_of(name: str, **options) -> OpenClipBackbone:
    torch.manual_seed(5)
    config = json.loads(json.dumps(ARCHITECTURES[name]))
    context = config["text_cfg"]["context_length"]
    return OpenClipBackbone(
        open_clip.CLIP(**config),
        open_clip.SimpleTokenizer(context_length=context),
        name=name,
        weights="test",
        **options,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_patches_come_on_the_grid_of_any_size_the_patch_divides(name):
    backbone = backbone_of(name)
    for height, width in ((64, 64), (96, 64), (128, 160)):
        features = backbone.encode(normalised_images(2, 160)[:, :, :height, :width], VALUE)
        grid = (height // backbone.patch, width // backbone.patch)
        assert features.grid == grid
        assert features.values(-1).shape[:3] == (2, *grid)
        assert features.image.norm(dim=-1).sub(1).abs().max() < 1e-5


def test_a_resnets_hidden_states_are_the_tokens_of_its_pool():
    backbone, images = backbone_of("resnet"), normalised_images(2, 64)
    ordinary = backbone.encode(images, FeatureRequest(ordinary_blocks=frozenset([-1]))).ordinary(-1)
    wanted = FeatureRequest(hidden_spans=frozenset([(0.55, 0.725)]), unprojected=True)
    features = backbone.encode(images, wanted)
    torch.testing.assert_close(features.hidden_patches[1], ordinary, rtol=0, atol=0)
    torch.testing.assert_close(features.unprojected, ordinary, rtol=0, atol=0)
    with pytest.raises(UsageError, match="vision transformer; resnet is a ResNet"):
        backbone.encode(images, FeatureRequest(windows=frozenset([2])))


def test_what_a_resnet_cannot_give_is_refused_before_weights_are_downloaded(monkeypatch):
    def refuse(*_):
        raise AssertionError("weights would have been downloaded")

    monkeypatch.setattr("clipspect.backbones.openclip.checkpoints.build_model", refuse)
    for method in ("winclip", "winclip+"):
        with pytest.raises(UsageError, match="RN50 is a ResNet"):
            clipspect.load(method, "RN50", "openai", device="cpu")


def test_a_resnets_value_path_is_its_pool_with_unit_values_and_eightfold_scale():
    backbone = backbone_of("resnet")
    images = normalised_images(2, 64)
    visual = backbone._model.visual
    with torch.inference_mode():
        maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        pool = visual.attnpool
        x = maps.flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
        v = pool.v_proj(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        unit = v / v.norm(dim=-1, keepdim=True)
        attention = (unit @ unit.mT * 8 / v.shape[-1] ** 0.5).softmax(-1)
        expected = pool.c_proj((attention @ v).transpose(1, 2).flatten(2))[:, 1:]
    torch.testing.assert_close(
        backbone.encode(images, VALUE).values(1).flatten(1, 2), expected, atol=1e-5, rtol=0
    )


def test_a_later_start_leaves_the_ordinary_path_and_copies_it_at_the_start():
    backbone = backbone_of("quick-gelu-vit")
    images = normalised_images(2, 48)
    late = backbone.encode(images, FeatureRequest(frozenset([2, 3]), start_block=1))
    full = backbone.encode(images, FeatureRequest(frozenset([2, 3])))
    assert torch.equal(late.image, full.image)
    assert (late.values(3) - full.values(3)).abs().max() > 1e-4
    with pytest.raises(UsageError, match="start_block=3"):
        backbone.encode(images, FeatureRequest(frozenset([3]), start_block=3))
    with pytest.raises(
        UsageError, match="block 1 asked for, and start_block=1 lets the stream start at block 2"
    ):
        backbone.encode(images, FeatureRequest(frozenset([1, 3]), start_block=1))


def test_the_value_path_lets_gradients_through_for_training():
    from clipspect.backbones.openclip.value_attention import encode_vit

    model = open_clip.CLIP(**ARCHITECTURES["vit"])
    tokens, _ = encode_vit(model.visual, normalised_images(1, 64), [2])
    tokens.value[2].square().sum().backward()
    assert model.visual.conv1.weight.grad.abs().sum() > 0


def test_encoding_leaves_weights_and_no_graph():
    backbone = backbone_of("vit")
    before = backbone.fingerprint
    features = backbone.encode(normalised_images(2, 64), VALUE)
    backbone._fingerprint = None
    assert backbone.fingerprint == before
    assert not features.values(-1).requires_grad


def test_bf16_agrees_with_fp32():
    images = normalised_images(4, 64)
    exact = backbone_of("vit").encode(images, VALUE).image
    rough = backbone_of("vit", precision="bf16").encode(images, VALUE).image
    assert rough.dtype == torch.float32
    assert (exact * rough).sum(-1).min() > 0.999


def test_requests_join_and_a_block_the_backbone_lacks_is_named():
    joined = VALUE | FeatureRequest(ordinary_blocks=frozenset([1]), windows=frozenset([2]))
    features = backbone_of("vit").encode(normalised_images(1, 64), joined)
    assert set(features.value_patches) == {2}
    assert set(features.ordinary_patches) == {1}
    assert features.windows[2].shape[1] == 9
    with pytest.raises(UsageError, match="blocks 1…2"):
        backbone_of("vit").encode(normalised_images(1, 64), FeatureRequest(frozenset([7])))
    with pytest.raises(UsageError, match="start_block"):
        VALUE | FeatureRequest(frozenset([2]), start_block=1)


def test_features_are_cut_and_joined_in_order():
    backbone = backbone_of("vit")
    images = normalised_images(5, 64)
    whole = backbone.encode(images, VALUE)
    joined = Features.concat([whole[:2], whole[2:]])
    assert torch.equal(joined.values(-1), whole.values(-1))
    assert len(whole[[3, 1]]) == 2
    assert torch.equal(whole[[3, 1]].image[0], whole.image[3])


def test_text_is_the_same_whatever_padding_is_cut():
    backbone = backbone_of("quick-gelu-vit")
    sentences = ["a nut", "a cropped industrial photo of the unblemished nut"]
    together = backbone.encode_text(sentences)
    alone = torch.cat([backbone.encode_text([s]) for s in sentences])
    torch.testing.assert_close(together, alone, atol=5e-6, rtol=0)
    with torch.inference_mode():
        expected = backbone._model.encode_text(backbone.tokenize(sentences))
    torch.testing.assert_close(together, expected, atol=5e-6, rtol=0)


def test_a_sentence_longer_than_the_context_is_refused_not_cut():
    with pytest.raises(UsageError, match="shorter object name"):
        backbone_of("vit").encode_text(["very " * 30 + "long"])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "RN50"])
@pytest.mark.slow
def test_full_size_architectures_of_open_clip(name):
    with pytest.warns(UserWarning):
        backbone = load_backbone(name, "random")
    images = normalised_images(1, backbone.image_size)
    with torch.inference_mode():
        expected = backbone._model.encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.encode(images, VALUE).image, expected, atol=1e-5, rtol=0)


def test_the_stream_starts_where_it_was_published():
    for depth, start in ((1, 0), (4, 0), (12, 0), (16, 4), (24, 12)):
        request = FeatureRequest(value_blocks=frozenset([-1])).resolved(depth)
        assert request.start_block == start
    assert make_method("anoclip", {"start_block": "3"}).request().resolved(24).start_block == 3
    assert make_method("anoclip").start_block == "auto"
    for wrong in ("early", "-1", -1, 1.5):
        with pytest.raises(UsageError, match="start_block"):
            make_method("anoclip", {"start_block": wrong})
    with pytest.raises(UsageError, match="block 6 asked for, and start_block=12"):
        FeatureRequest(value_blocks=frozenset([6])).resolved(24)


def test_blocks_are_listed_by_number_or_depth():
    assert parse_blocks("3,6, -1") == (frozenset([3, 6, -1]), frozenset())
    request = FeatureRequest(hidden_spans=parse_blocks("25%,50%,75%,100%")[1])
    assert request.resolved(24).hidden_blocks == {6, 12, 18, 24}
    assert request.resolved(12).hidden_blocks == {3, 6, 9, 12}
    for wrong in ("", "a", "0", "150%", "3;4"):
        with pytest.raises(UsageError, match="blocks="):
            parse_blocks(wrong)


def test_hidden_states_are_those_before_the_final_norm():
    backbone = load_backbone("tiny", image_size=128)
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    last = backbone.depth
    request = FeatureRequest(hidden_blocks=frozenset([2, -1]), unprojected=True)
    features = backbone.encode(images, request)
    visual = backbone.network.visual
    with torch.inference_mode():
        torch.testing.assert_close(
            visual.ln_post(features.hidden(-1)), features.unprojected, rtol=0, atol=1e-5
        )
    assert set(features.hidden_patches) == {2, last}
