"""The V-V path against tokens recorded from the official fork (vv.npz)."""

from __future__ import annotations

import torch

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.openclip.value_attention import encode_vit


def test_one_forward_gives_the_class_token_and_the_value_tokens_of_every_block(parity, close):
    vv = parity.arrays("vv")
    images = parity.tensor(vv, "images")
    blocks = sorted(int(key.removeprefix("vv_l")) for key in vv if key.startswith("vv_l"))
    with torch.inference_mode():
        tokens, grid = encode_vit(parity.model.visual, images, blocks, blocks)
    assert grid[0] * grid[1] == vv[f"vv_l{blocks[0]}"].shape[1]
    close(tokens.pooled, vv["pooled"][:, 0], 1e-5)
    for block in blocks:
        close(tokens.value[block], vv[f"vv_l{block}"], 1e-5)
        close(tokens.ordinary[block], vv[f"ori_l{block}"], 1e-5)
    close(tokens.value[parity.backbone.depth], vv["pooled"][:, 1:], 1e-5)


def test_asking_for_less_changes_no_number(parity, close):
    vv = parity.arrays("vv")
    images = parity.tensor(vv, "images")
    last = parity.backbone.depth
    everything = frozenset(range(1, last + 1))
    full = parity.backbone.encode(images, FeatureRequest(everything, everything, unprojected=True))
    lean = parity.backbone.encode(images, FeatureRequest(value_blocks=frozenset([-1])))
    close(lean.image, full.image, 1e-6)
    close(lean.values(-1), full.values(last), 1e-6)


def test_the_backbones_image_embedding_is_open_clips(parity, close):
    images = parity.tensor(parity.arrays("vv"), "images")
    with torch.inference_mode():
        expected = parity.model.encode_image(images, normalize=True)
    close(parity.backbone.encode(images, FeatureRequest()).image, expected, 1e-5)
