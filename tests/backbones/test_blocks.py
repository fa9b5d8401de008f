"""Half precision on a processor: the same attention by other means, and float32 wherever rounding would add up."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.backbones.openclip.blocks import attend, cast_products
from helpers.small_models import ARCHITECTURES, normalised_images


@pytest.mark.parametrize(("heads", "queries", "keys"), [(3, 17, 17), (14, 1, 226), (2, 1500, 1500)])
def test_attention_by_products_is_softmax_attention_to_the_precision_of_bfloat16(heads, queries, keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 16) for n in (queries, keys, keys))
    exact = F.scaled_dot_product_attention(q, k, v)
    with torch.inference_mode():
        found = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0)


def test_a_text_token_sees_none_after_it():
    q, k, v = (torch.randn(1, 2, 6, 8) for _ in range(3))
    changed = v.clone()
    changed[:, :, 4:] += 1
    before, after = attend(q, k, v, causal=True), attend(q, k, changed, causal=True)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert (before[:, :, 4:] - after[:, :, 4:]).abs().min() > 0


def test_only_the_weights_of_products_are_cast():
    visual = open_clip.CLIP(**ARCHITECTURES["vit"]).visual
    cast_products(visual, torch.bfloat16)
    for part in visual.modules():
        wanted = torch.float32 if isinstance(part, nn.LayerNorm) else torch.bfloat16
        assert all(p.dtype == wanted for p in part.parameters(recurse=False)) or part is visual
    assert visual.proj.dtype == visual.positional_embedding.dtype == torch.float32


@pytest.mark.parametrize("name", ["vit", "quick-gelu-vit", "resnet"])
def test_every_output_in_bfloat16_is_close_to_float32(name):
    def outputs(precision):
        torch.manual_seed(3)
        model = open_clip.CLIP(**ARCHITECTURES[name])
        tokenizer = open_clip.SimpleTokenizer(context_length=20)
        backbone = OpenClipBackbone(model, tokenizer, name=name, weights="test", precision=precision)
        windows = frozenset() if name == "resnet" else frozenset([2])
        everything = FeatureRequest(frozenset([-1]), frozenset([-1]), windows=windows)
        found = backbone.encode(normalised_images(2, 96), everything)
        text = backbone.encode_text(["a nut", "a photo of a rusty nut"])
        return [text, found.image, found.values(-1), found.ordinary(-1), *found.windows.values()]

    for exact, rough in zip(outputs("fp32"), outputs("bf16"), strict=True):
        assert rough.dtype == torch.float32
        assert F.cosine_similarity(exact, rough, dim=-1).min() > 0.999
