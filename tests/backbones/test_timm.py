"""timm vision transformers: timm's own numbers, the V-V path of every attention kind, names, files, refusals."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import clipspect
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.timm import loader as timm_loader
from clipspect.backbones.timm.backbone import TimmBackbone, TimmCLIPBackbone
from clipspect.backbones.timm.tower import read_patches
from clipspect.errors import UsageError, WeightsError
from clipspect.registry import make_method

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 0}
TOWERS = {
    "vit_small_patch14_dinov2": {**SMALL, "img_size": 56},
    "vit_small_patch14_reg4_dinov2": {**SMALL, "img_size": 56},
    "vit_tiny_patch16_224": {**SMALL, "img_size": 64, "qk_norm": True},
    "vit_base_patch16_siglip_224": {**SMALL, "img_size": 64},
    "vit_base_patch16_clip_224": {**SMALL, "img_size": 64},  # norm_pre
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 56},  # RoPE, separate projections
    "eva02_base_patch16_clip_224": {**SMALL, "img_size": 64},  # inner attention norm
    "vit_small_patch16_dinov3": {**SMALL, "img_size": 64},
    "vit_small_patch16_rope_mixed_224": {**SMALL, "img_size": 64},
    "vit_pe_core_tiny_patch16_384": {**SMALL, "img_size": 64},
    "vit_base_patch16_radio_v3": {**SMALL, "img_size": 64},  # C-RADIO: eight prefix tokens, no final norm
}
NEW = {"vit_base_patch16_radio_v3"} - set(timm.list_models())
"""Towers that older versions of timm have not."""
SIZES = [(1, 1), (1.5, 1), (0.5, 1)]


def make_trunk(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = timm.create_model(name, **TOWERS[name], dynamic_img_size=True)
        for parameter in trunk.parameters():  # LayerScale of 1e-5 would hide every mistake
            parameter.data += 0.1 * torch.randn_like(parameter)
    return trunk.eval()


@pytest.fixture(scope="module", params=list(TOWERS))
def backbone(request):
    if request.param in NEW:
        pytest.skip("this version of timm has no such model")
    trunk = make_trunk(request.param)
    return TimmBackbone(trunk, name=request.param, weights="test", mean=(0.5,) * 3, std=(0.5,) * 3)


def make_images(backbone, height=1.0, width=1.0):
    sides = [round(backbone.image_size * f / backbone.patch) * backbone.patch for f in (height, width)]
    return torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_ordinary_tokens_and_image_embeddings_are_timms(backbone, size):
    images, trunk = make_images(backbone, *size), backbone.network
    blocks = frozenset(range(1, backbone.depth + 1))
    request = FeatureRequest(ordinary_blocks=blocks, hidden_blocks=blocks, unprojected=True)
    features = backbone.encode(images, request)
    with torch.inference_mode():
        for norm, found in ((True, features.ordinary), (False, features.hidden)):
            expected = trunk.forward_intermediates(images, norm=norm, intermediates_only=True)
            for block in blocks:
                tokens = expected[block - 1].permute(0, 2, 3, 1)
                torch.testing.assert_close(found(block), tokens, rtol=0, atol=2e-5)
        last = trunk.forward_features(images)
        image = F.normalize(trunk.forward_head(last, pre_logits=True), dim=-1)
    torch.testing.assert_close(features.image, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(features.unprojected, features.ordinary(-1))
    assert features.grid == tuple(side // backbone.patch for side in images.shape[2:])


def test_value_tokens_are_timms_attention_with_values_for_queries_and_keys(backbone, monkeypatch):
    """Every block's own attention module, its product replaced, fed with the ordinary stream."""
    images, trunk = make_images(backbone), backbone.network
    sdpa, inputs = F.scaled_dot_product_attention, []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append((args[0], kwargs)), with_kwargs=True
        )
        for block in trunk.blocks
    ]
    with torch.inference_mode():
        trunk.forward_features(images)
        for hook in hooks:
            hook.remove()
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: sdpa(v, v, v))
        stream, expected = inputs[0][0], []
        for block, (x, kwargs) in zip(trunk.blocks, inputs, strict=True):
            gain = block.attn(block.norm1(x), **kwargs)
            scale = block.gamma_1 if hasattr(block, "gamma_1") else None
            stream = stream + (
                block.ls1(gain) if hasattr(block, "ls1") else gain if scale is None else scale * gain
            )
            expected.append(trunk.norm(stream)[:, trunk.num_prefix_tokens :])
    monkeypatch.undo()
    blocks = frozenset(range(1, backbone.depth + 1))
    features = backbone.encode(images, FeatureRequest(value_blocks=blocks))
    for block in blocks:
        torch.testing.assert_close(
            features.values(block).flatten(1, 2), expected[block - 1], rtol=0, atol=2e-5
        )


def test_a_later_start_copies_the_ordinary_stream(backbone):
    images = make_images(backbone)
    late = backbone.encode(images, FeatureRequest(frozenset([-1]), start_block=backbone.depth - 1))
    early = backbone.encode(images, FeatureRequest(frozenset([-1])))
    assert (late.values(-1) - early.values(-1)).abs().max() > 1e-3


def test_views_and_sizes(backbone):
    images = make_images(backbone)
    features = backbone.encode(images, FeatureRequest(views=True))
    torch.testing.assert_close(features.views[:, 0], features.image, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="multiple of the patch size"):
        backbone.encode(images[..., :-1], FeatureRequest())
    with pytest.raises(UsageError, match="windows"):
        backbone.encode(images, FeatureRequest(windows=frozenset([2])))


def test_half_precision_is_close(backbone):
    images = make_images(backbone)
    request = FeatureRequest(frozenset([-1]), frozenset([-1]))
    exact, half = (backbone.with_precision(p).encode(images, request) for p in ("fp32", "bf16"))
    assert half.values(-1).dtype == torch.float32
    assert F.cosine_similarity(exact.values(-1), half.values(-1), dim=-1).mean() > 0.99
    with pytest.raises(UsageError, match="runs in fp32 only"):
        backbone.with_precision("int8")


def test_a_name_loads_random_weights_that_repeat():
    first, again = (
        load_backbone("timm:vit_tiny_patch16_224", "random", image_size=64, device="cpu", seed=3)
        for _ in "ab"
    )
    assert first.fingerprint == again.fingerprint
    assert first.is_random
    assert not first.has_text
    assert first.mean == (0.5, 0.5, 0.5)
    assert (first.patch, first.depth, first.image_size) == (16, 12, 64)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_local_file_is_loaded_whole(tmp_path, suffix):
    donor = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(donor.state_dict(), path)
    else:
        save_file(donor.state_dict(), path)
    loaded = load_backbone("timm:vit_tiny_patch16_224", str(path), device="cpu")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = donor.eval().forward_features(images)[:, 1:]
    found = loaded.encode(images, FeatureRequest(ordinary_blocks=frozenset([-1]))).ordinary(-1)
    torch.testing.assert_close(found.flatten(1, 2), expected, rtol=0, atol=1e-5)
    with pytest.raises(WeightsError, match="does not fit"):
        load_backbone("timm:vit_small_patch14_dinov2", str(path), device="cpu")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError):
        load_backbone("timm:vit_tiny_patch16_224", str(path), device="cpu")


@pytest.fixture
def no_download(monkeypatch):
    def refuse(name, model):
        raise AssertionError("weights would have been downloaded")

    monkeypatch.setattr(timm_loader, "_download", refuse)


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ("timm:vit_small_patch14_dinov2", "anoclip", "has no text tower.*anomaly-dino"),
        ("timm:vit_small_patch14_dinov", "anomaly-dino", "did you mean vit_small_patch14_dinov2"),
        ("timm:resnet50", "anomaly-dino", "VisionTransformer and Eva"),
        ("timm:swin_tiny_patch4_window7_224", "musc", "VisionTransformer and Eva"),
    ],
)
def test_what_cannot_run_is_refused_before_weights_are_downloaded(no_download, model, method, message):
    with pytest.raises(UsageError, match=message):
        clipspect.load(method, model, device="cpu")


def test_attention_without_a_value_path_still_has_ordinary_tokens(no_download):
    model = "timm:vit_dpwee_patch16_reg1_gap_256"
    with pytest.raises(UsageError, match="the V-V path is not defined. Ordinary tokens are possible"):
        clipspect.load(make_method("musc", {"path": "value"}), model, device="cpu")
    detector = clipspect.load("anomaly-dino", model, "random", device="cpu", image_size=64)
    request = FeatureRequest(value_blocks=frozenset([-1]))
    with pytest.raises(UsageError, match="Ordinary tokens are possible"):
        detector.backbone.encode(torch.zeros(1, 3, 64, 64), request)


def test_a_download_that_fails_says_what_is_needed(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(WeightsError, match=r"timm/vit_small_patch14_dinov2.lvd142m.*--weights FILE"):
        load_backbone("timm:vit_small_patch14_dinov2", device="cpu")
    with pytest.raises(WeightsError, match="tags: lvd142m"):
        load_backbone("timm:vit_small_patch14_dinov2", "openai", device="cpu")


@pytest.mark.parametrize("method", ["anomaly-dino", "subspace", "musc"])
def test_methods_without_text_run_on_it(plates, method):
    detector = clipspect.load(method, "timm:vit_tiny_patch16_224", "random", device="cpu", image_size=96)
    paths = sorted(plates.rglob("*.png"))[:6]
    references = None if method == "musc" else detector.encode_references(paths[4:])
    found = detector.detect(paths[:4], "plate", references=references)
    assert all(d.error is None and 0 <= d.score <= 1 for d in found)


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
CLIPS = {
    "map": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"},
    "token": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None},
    "linear": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "linear"},
}


@pytest.fixture(scope="module", params=list(CLIPS))
def clip(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = {"image_size": 224, "timm_model_pretrained": False, **CLIPS[request.param]}
        model = open_clip.CustomTextCLIP(embed_dim=192, vision_cfg=vision, text_cfg=TEXT).eval()
    return model


@pytest.fixture
def clip_backbone(clip):
    import copy

    return TimmCLIPBackbone(copy.deepcopy(clip), open_clip.SimpleTokenizer(), name="clip", weights="test")


def test_an_open_clip_model_keeps_its_embeddings(clip, clip_backbone):
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    sentences = ["a flawless plate", "a broken plate"]
    with torch.inference_mode():
        image = clip.encode_image(images, normalize=True)
        text = clip.encode_text(open_clip.SimpleTokenizer()(sentences))
    torch.testing.assert_close(clip_backbone.encode(images, FeatureRequest()).image, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(clip_backbone.encode_text(sentences), text, rtol=0, atol=1e-5)


def test_patches_are_read_into_the_space_of_the_text(clip, clip_backbone):
    side = 2 * clip_backbone.patch
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = clip_backbone.encode(images, FeatureRequest(frozenset([-1]), frozenset([-1])))
    assert features.values(-1).shape[-1] == features.ordinary(-1).shape[-1] == features.image.shape[-1] == 192
    trunk, head = clip_backbone.network.visual.trunk, clip_backbone.network.visual.head
    with torch.inference_mode():
        last = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
        pooled = [
            head(
                trunk.head(
                    trunk.fc_norm(token if trunk.attn_pool is None else trunk.attn_pool(token[:, None]))
                )
            )
            for token in last.unbind(1)
        ]
    torch.testing.assert_close(features.ordinary(-1).flatten(1, 2), torch.stack(pooled, 1), rtol=0, atol=1e-5)
    assert read_patches(trunk, last).shape[:2] == last.shape[:2]


def test_an_open_clip_tower_that_cannot_serve_is_refused_before_weights_are_downloaded(monkeypatch):
    def refuse(*_):
        raise AssertionError("weights would have been downloaded")

    monkeypatch.setattr("clipspect.backbones.openclip.checkpoints.build_model", refuse)
    with pytest.raises(UsageError, match="VisionTransformer and Eva"):
        clipspect.load("anoclip", "MobileCLIP2-S0", "any", device="cpu")


def test_a_tokenizer_without_its_package_names_the_extra(monkeypatch):
    from clipspect.backbones.openclip import checkpoints

    def missing(name):
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(open_clip, "get_tokenizer", missing)
    with pytest.raises(UsageError, match=r"clipspect\[siglip\]"):
        checkpoints._tokenizer("ViT-B-16-SigLIP2-256")
