"""One image with the offline model: the heavy packages stay out, and the numbers are open_clip's all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import clipspect
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.backbones.openclip.plain_clip import PlainCLIP, is_plain_config
from clipspect.demo import DEMO_IMAGES
from helpers.small_models import ARCHITECTURES, normalised_images

DETECT = """
import sys
from clipspect.cli import main
sys.argv = ["clipspect", "detect", sys.argv[1], "--object", "flange", "--out", sys.argv[2]]
try:
    main()
finally:
    print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""
HEAVY = ["open_clip", "torchvision", "timm", "torch._dynamo", "sympy", "transformers", "tifffile"]


def test_with_cached_anchors_an_image_is_scored_without_the_heavy_packages(tmp_path):
    clipspect.load("anoclip", "tiny").model.set_object("flange")
    image = sorted(DEMO_IMAGES.glob("*crack*"))[0]
    script = DETECT.format(heavy=HEAVY)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(image), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    assert "1 image: 1 undecided" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "loaded:"


def test_a_plain_model_gives_the_numbers_of_open_clip_in_both_towers(tmp_path):
    config = ARCHITECTURES["vit"]
    theirs = open_clip.CLIP(**config).eval()
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    description = {"model_cfg": config, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    plain = load_backbone(str(tmp_path))
    assert isinstance(plain._model, PlainCLIP)
    theirs.visual.preprocess_cfg = preprocess
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    whole = OpenClipBackbone(theirs, tokenizer, name="small", weights=plain.weights)
    depth = plain.depth
    everything = FeatureRequest(
        frozenset([1, depth]), frozenset([depth]), windows=frozenset([2]), unprojected=True
    )
    images = normalised_images(2, 2 * plain.image_size)
    mine, expected = plain.encode(images, everything), whole.encode(images, everything)
    assert plain.fingerprint == whole.fingerprint
    assert (plain.mean, plain.std, plain.image_size) == (whole.mean, whole.std, whole.image_size)
    for one, other in (
        (mine.image, expected.image),
        (mine.values(1), expected.values(1)),
        (mine.values(depth), expected.values(depth)),
        (mine.ordinary(depth), expected.ordinary(depth)),
        (mine.windows[2], expected.windows[2]),
        (mine.unprojected, expected.unprojected),
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    sentences = ["a photo of a nut"]
    torch.testing.assert_close(plain.encode_text(sentences), whole.encode_text(sentences), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_cfg", "ls_init_value", 0.1),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "layers", [1, 1, 1, 1]),
        ("text_cfg", "hf_tokenizer_name", "roberta-base"),
        ("text_cfg", "no_causal_mask", True),
    ],
)
def test_whatever_is_not_plain_is_left_to_open_clip(part, key, value):
    config = json.loads(json.dumps(ARCHITECTURES["vit"]))
    assert is_plain_config(config)
    config[part][key] = value
    assert not is_plain_config(config)
