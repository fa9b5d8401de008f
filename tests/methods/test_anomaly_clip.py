"""AnomalyCLIP's learned prompts against an independent statement of the official forward pass, in plain PyTorch."""

from __future__ import annotations

import open_clip
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

import clipspect
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.errors import UsageError, WeightsError
from clipspect.model import AnomalyModel
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.prompts.learned import AnomalyCLIPAnchors, read_anomalyclip
from clipspect.registry import make_method

CONTEXT, WIDTH, DEPTH, SIDE, LEARNED, DEEP = 20, 24, 22, 32, 5, 3
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "layers": DEPTH, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 64, "width": WIDTH, "heads": 3, "layers": 5},
}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = open_clip.CLIP(**CONFIG).eval()
        for parameter in built.parameters():  # the first values are too small for a mistake to show
            parameter.data += 0.1 * torch.randn_like(parameter)
    return built


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A prompt learner as the official training saves it: depth 4, 5 context vectors, 3 deep tokens."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    state = {"ctx_pos": random(1, 1, LEARNED, WIDTH), "ctx_neg": random(1, 1, LEARNED, WIDTH)}
    for number in range(3):
        state[f"compound_prompts_text.{number}"] = random(DEEP, WIDTH)
        state[f"compound_prompt_projections.{number}.weight"] = random(896, WIDTH)
    for side, end in (("pos", 8), ("neg", 10)):
        state[f"token_prefix_{side}"] = random(1, 1, 1, WIDTH)
        state[f"token_suffix_{side}"] = random(1, 1, CONTEXT - 1 - LEARNED, WIDTH)
        tokens = torch.arange(CONTEXT, dtype=torch.int32) % 5
        tokens[end] = 63
        state[f"tokenized_prompts_{side}"] = tokens.view(1, 1, CONTEXT)
    path = tmp_path_factory.mktemp("prompts") / "epoch_15.pth"
    torch.save({"epoch": 15, "prompt_learner": state}, path)
    return path, state


def attention(block, x, heads, *, mask=None, values=False):
    """One block's attention on (N, C); with ``values`` each query and key is the value."""
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    q, k, v = (block.ln_1(x) @ weight.T + bias).chunk(3, -1)
    q, k = (v, v) if values else (q, k)
    out = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        affinity = a @ b.T / a.shape[-1] ** 0.5
        out.append((affinity if mask is None else affinity + mask).softmax(-1) @ c)
    return torch.cat(out, -1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias


def mlp(block, x):
    hidden = block.ln_2(x) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    return hidden * torch.sigmoid(1.702 * hidden) @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias


def official_text(model, state):
    """Normal and abnormal text features (2, D), unit length."""
    mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    features = []
    for side in ("pos", "neg"):
        parts = [state[f"{name}_{side}"][0, 0] for name in ("token_prefix", "ctx", "token_suffix")]
        x = torch.cat(parts) + model.positional_embedding
        for number, block in enumerate(model.transformer.resblocks):
            if 1 <= number <= 3:
                deep = state[f"compound_prompts_text.{number - 1}"].half()
                x = torch.cat([x[:1], deep.float(), x[1 + DEEP :]])
            x = x + attention(block, x, 3, mask=mask)
            x = x + mlp(block, x)
        end = int(state[f"tokenized_prompts_{side}"].flatten().argmax())
        features.append(F.normalize(model.ln_final(x)[end] @ model.text_projection, dim=-1))
    return torch.stack(features)


def official_image(model, image, blocks):
    """Class feature (D) and patch features (N, D) of each block, unit length; the last 19 blocks have a V-V path."""
    visual = model.visual
    patches = visual.conv1(image[None])[0].flatten(1).T
    side, own = round(len(patches) ** 0.5), SIDE // 8
    positions = visual.positional_embedding
    if side != own:
        grid = positions[1:].T.view(1, -1, own, own)
        grid = F.interpolate(grid, (side, side), mode="bilinear")
        positions = torch.cat([positions[:1], grid[0].flatten(1).T])
    x = visual.ln_pre(torch.cat([visual.class_embedding[None], patches]) + positions)
    stream, found = None, []
    for number, block in enumerate(visual.transformer.resblocks, 1):
        if number > DEPTH - 19:
            stream = (x if stream is None else stream) + attention(block, x, 2, values=True)
        x = x + attention(block, x, 2)
        x = x + mlp(block, x)
        if number in blocks:
            found.append(F.normalize(visual.ln_post(stream)[1:] @ visual.proj, dim=-1))
    return F.normalize(x[0] @ visual.proj, dim=-1), found


def official_scores(model, state, image, blocks):
    text = official_text(model, state)
    cls, layers = official_image(model, image, blocks)
    total = 0
    for patches in layers:
        similarity = (patches @ text.T / 0.07).softmax(-1)
        side = round(len(patches) ** 0.5)
        grid = similarity.T.view(1, 2, side, side)
        size = image.shape[-1]
        upsampled = F.interpolate(grid, (size, size), mode="bilinear")[0]
        total = total + (upsampled[1] + 1 - upsampled[0]) / 2
    smoothed = torch.from_numpy(gaussian_filter(total.numpy(), sigma=4))
    return (cls @ text.T / 0.07).softmax(-1)[1], smoothed


@pytest.mark.parametrize("side", [SIDE, 48])
def test_maps_and_scores_are_the_official_ones(model, checkpoint, side):
    path, state = checkpoint
    blocks = "6,11,17,22"
    method = make_method("anomaly-clip", {"checkpoint": str(path), "blocks": blocks})
    backbone = OpenClipBackbone(model, None, name="small", weights="test", image_size=side)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    scored = AnomalyModel(backbone, (method,), PromptConfig(load_prompts())).set_object("nut")(images)
    found = scored["anomaly-clip"]
    with torch.inference_mode():
        torch.testing.assert_close(
            scored_anchors(backbone, path), official_text(model, state), rtol=0, atol=2e-6
        )
        for row, image in enumerate(images):
            score, maps = official_scores(model, state, image, [6, 11, 17, 22])
            torch.testing.assert_close(found.image[row], score, rtol=0, atol=1e-5)
            torch.testing.assert_close(4 * found.map[row], maps, rtol=0, atol=1e-5)  # official: the sum
    assert found.image.std() > 1e-4


def scored_anchors(backbone, path):
    return AnomalyCLIPAnchors(path).anchors(backbone, "nut").pair


def test_the_default_blocks_are_those_of_the_paper():
    method = make_method("anomaly-clip")
    resolved = method.request().resolved(24)
    assert resolved.value_blocks == {6, 12, 18, 24}
    assert resolved.start_block == 5


def test_the_checkpoint_is_part_of_what_a_result_depends_on(model, checkpoint, tmp_path):
    backbone = OpenClipBackbone(model, None, name="small", weights="test")
    digests = []
    for number, change in enumerate((0.0, 0.5)):
        stored = torch.load(checkpoint[0], weights_only=True)
        stored["prompt_learner"]["ctx_pos"] += change
        path = tmp_path / f"{number}.pth"
        torch.save(stored, path)
        method = make_method("anomaly-clip", {"checkpoint": str(path), "blocks": "-1"})
        digests.append(AnomalyModel(backbone, (method,), PromptConfig(load_prompts())).prompt_digest)
    assert digests[0] != digests[1]


def test_what_cannot_be_used_says_why(model, checkpoint, tmp_path):
    with pytest.raises(UsageError, match="--set checkpoint=FILE"):
        clipspect.load("anomaly-clip", device="cpu")
    with pytest.raises(UsageError, match="ViT-L-14-336"):
        make_model(model, checkpoint[0], text={"width": 32, "heads": 2}).set_object("nut")
    for content, message in (
        ({"state": {}}, "no 'prompt_learner'"),
        ({"prompt_learner": {"ctx_pos": torch.zeros(1)}}, "not a whole prompt checkpoint"),
    ):
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(WeightsError, match=message):
            read_anomalyclip(tmp_path / "bad.pth")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_anomalyclip(tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="no such prompt checkpoint"):
        clipspect.load("anomaly-clip", settings={"checkpoint": "nowhere.pth"}, device="cpu")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"prompt_learner": {"ctx_pos": print}}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_anomalyclip(tmp_path / "code.pth")


def make_model(model, path, text):
    other = open_clip.CLIP(**{**CONFIG, "text_cfg": {**CONFIG["text_cfg"], **text}})
    backbone = OpenClipBackbone(other, None, name="other", weights="test")
    method = make_method("anomaly-clip", {"checkpoint": str(path), "blocks": "-1"})
    return AnomalyModel(backbone, (method,), PromptConfig(load_prompts()))
