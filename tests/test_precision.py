"""A faster arithmetic is used where its maps were measured to agree with float32, and refused where not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

import clipspect
from clipspect import precision
from clipspect.backbones.cpu.int8 import (
    FULL_RANGE,
    HALF_RANGE,
    Int8Linear,
    has_int8,
    has_vnni,
    weight_range,
)
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.cli import main
from clipspect.demo import DEMO_IMAGES
from clipspect.errors import UsageError
from clipspect.postprocess.agreement import MapAgreement, compare_maps, rank_correlation
from clipspect.precision import Measured, choose, measure_precisions, resolve_precision
from helpers.small_models import ARCHITECTURES, normalised_images

GOOD, BAD = MapAgreement(1e-4, 0.9999, 1e-4), MapAgreement(1e-2, 0.99, 1e-4)


def test_rank_correlation_is_spearmans_ties_included():
    random = np.random.default_rng(0)
    a = random.integers(0, 9, 200).astype(np.float32)
    b = (a + random.normal(0, 3, 200)).round().astype(np.float32)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(a, np.ones_like(a)))


def test_the_worst_image_counts():
    exact = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 16)
    rough = exact.copy()
    rough[1] = rough[1, ::-1]
    found = compare_maps(exact, rough, np.array([0.5, 0.5]), np.array([0.5, 0.75]))
    assert found.rank_correlation == pytest.approx(-1)
    assert found.max_abs == pytest.approx(15 / 31, abs=1e-6)
    assert found.score_max_abs == 0.25


@pytest.mark.parametrize("bad", [BAD, MapAgreement(0, float("nan"), 0)])
def test_too_little_agreement_is_refused_with_the_figures(bad):
    GOOD.check("bf16")
    with pytest.raises(UsageError, match=r"bf16 was measured and refused.*Use fp32"):
        bad.check("bf16")


def test_the_fastest_that_agrees_is_chosen():
    exact = MapAgreement(0, 1, 0)
    found = {"fp32": Measured(10, exact), "bf16": Measured(4, GOOD), "fp16": Measured(2, BAD)}
    assert choose(found) == "bf16"
    assert choose(found | {"bf16": Measured(11, GOOD)}) == "fp32"


def test_the_offline_model_in_bfloat16_is_measured_once_and_says_so(monkeypatch):
    first = clipspect.load(model="tiny", precision="bf16", image_size=128)
    assert first.backbone.precision == first.settings()["precision"] == "bf16"
    assert 0.999 < first.agreement.rank_correlation < 1
    assert 0 < first.agreement.max_abs < 0.01

    def measured_again(*_):
        raise AssertionError("what is in the cache was measured again")

    monkeypatch.setattr(precision, "_maps", measured_again)
    again = clipspect.load(model="tiny", precision="bf16", image_size=128)
    assert again.agreement == first.agreement
    assert again.backbone.fingerprint == first.backbone.fingerprint


def test_a_processor_with_other_instructions_measures_again(monkeypatch):
    """Machines that share a cache folder round differently: int8 weights have half the range without VNNI."""
    backbone = load_backbone("tiny", image_size=64)
    here = precision._cached(backbone, "int8")
    assert precision._cached(backbone, "int8") == here
    other = not precision.has_vnni()
    monkeypatch.setattr(precision, "has_vnni", lambda: other)
    assert precision._cached(backbone, "int8") != here


def test_float32_is_not_measured_and_a_rounded_copy_leaves_it_as_it_is():
    backbone = load_backbone("tiny", image_size=128)
    before = backbone.fingerprint
    same, agreement = resolve_precision(backbone, "fp32")
    assert same is backbone
    assert agreement is None
    rough = backbone.with_precision("bf16")
    assert rough.fingerprint != before
    backbone._fingerprint = None
    assert backbone.fingerprint == before
    with pytest.raises(UsageError, match="already rounded"):
        rough.with_precision("fp16")


def test_maps_that_disagree_stop_a_named_precision_and_turn_auto_to_float32(monkeypatch):
    def scrambled(self, images, request, encode=OpenClipBackbone.encode):
        features = encode(self, images, request)
        if self.precision == "fp32":
            return features
        noise = torch.Generator().manual_seed(0)
        noisy = {b: t + torch.randn(t.shape, generator=noise) for b, t in features.value_patches.items()}
        return replace(features, value_patches=noisy)

    monkeypatch.setattr(OpenClipBackbone, "encode", scrambled)
    monkeypatch.setattr(precision, "_recall", lambda *_: None)
    monkeypatch.setattr(precision, "_remember", lambda *_: None)
    backbone = load_backbone("tiny", image_size=128)
    found = measure_precisions(backbone, ["bf16"])
    assert found["bf16"].agreement.rank_correlation < 0.99
    with pytest.raises(UsageError, match="precision bf16 of tiny .* refused"):
        resolve_precision(backbone, "bf16")
    monkeypatch.setattr(precision, "fast_precisions", lambda device: ["bf16"])
    assert resolve_precision(backbone, "auto") == (backbone, None)


needs_int8 = pytest.mark.skipif(not has_int8(), reason="this build of torch has no int8 products here")


@needs_int8
@pytest.mark.parametrize("name", ["vit", "quick-gelu-vit"])
def test_int8_is_the_same_network_rounded_and_an_image_does_not_see_its_batch(name):
    torch.manual_seed(3)
    model = open_clip.CLIP(**ARCHITECTURES[name])
    exact = OpenClipBackbone(model, None, name=name, weights="test")
    rough = exact.with_precision("int8")
    everything = FeatureRequest(frozenset([-1]), frozenset([-1]), windows=frozenset([2]))
    images = normalised_images(3, 96)
    images[1] *= 9  # another range, which must not be its neighbours'
    mine, theirs = rough.encode(images, everything), exact.encode(images, everything)
    for one, other in (
        (mine.image, theirs.image),
        (mine.values(-1), theirs.values(-1)),
        (mine.ordinary(-1), theirs.ordinary(-1)),
    ):
        likeness = F.cosine_similarity(one, other, dim=-1)
        assert likeness.min() > 0.998
        assert likeness.min() < 1 - 1e-6
    # Windows do not run in int8: they are float32 or, where that is fast, bfloat16.
    assert F.cosine_similarity(mine.windows[2], theirs.windows[2], dim=-1).min() > 0.998
    alone = rough.encode(images[:1], everything)
    torch.testing.assert_close(alone.values(-1), mine.values(-1)[:1], atol=2e-3, rtol=0)
    assert rough.fingerprint not in (exact.fingerprint, exact.with_precision("bf16").fingerprint)


needs_vnni = pytest.mark.skipif(not has_vnni(), reason="untested here: full-range int8 needs VNNI")


@needs_int8
@pytest.mark.parametrize("levels", [HALF_RANGE, pytest.param(FULL_RANGE, marks=needs_vnni)])
@pytest.mark.parametrize("sign", [1, -1])
def test_int8_sums_are_exact_where_every_product_is_as_large_as_it_can_be(levels, sign):
    torch.manual_seed(1)
    weight = torch.full((8, 512), float(sign * levels))
    weight[4:] *= torch.randint(0, 2, (4, 512)) * 2 - 1
    x = torch.full((6, 512), 254.0)  # with a step of 1 the levels are the values themselves
    x[3:] = torch.randint(0, 255, (3, 512)).float()
    x[:, 0], x[:, 1] = 0.0, 254.0
    linear = Int8Linear(weight, torch.zeros(8), levels)
    assert torch.equal(linear.weight.long(), weight.long())
    exact = x.long() @ weight.long().T
    assert torch.equal(linear(x), exact.float())


def test_the_weight_range_follows_the_processor(monkeypatch):
    import clipspect.backbones.cpu.int8 as int8

    monkeypatch.setattr(int8, "has_vnni", lambda: True)
    assert int8.weight_range() == 127
    monkeypatch.setattr(int8, "has_vnni", lambda: False)
    assert int8.weight_range() == 63
    assert not int8.fast_int8()


@needs_int8
def test_int8_weights_are_within_half_a_step_of_the_exact_ones():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(7, 32), torch.randn(7), torch.randn(5, 32)
    product = Int8Linear(weight, bias)
    step = product.scale[:, None]
    assert ((product.weight * step - weight).abs() <= step * 0.5001).all()
    assert torch.equal(step[:, 0], weight.abs().amax(1) / weight_range())
    with torch.inference_mode():
        found = product(x)
    torch.testing.assert_close(found, F.linear(x, weight, bias), atol=0.25, rtol=0)
    assert not torch.equal(found, F.linear(x, weight, bias))
    x[2, 3] = float("nan")  # damaged weights before it: the row shows it, not an exception
    assert product(x).isnan().all()


def test_int8_without_a_vision_transformer_is_refused_and_auto_leaves_it_out(monkeypatch):
    resnet = OpenClipBackbone(open_clip.CLIP(**ARCHITECTURES["resnet"]), None, name="resnet", weights="test")
    with pytest.raises(UsageError, match="int8 is for vision transformers"):
        resnet.with_precision("int8")
    asked = []
    monkeypatch.setattr(precision, "fast_precisions", lambda device: ["bf16", "int8"])
    monkeypatch.setattr(
        precision,
        "measure_precisions",
        lambda backbone, names: asked.append(list(names)) or {"fp32": Measured(1, MapAgreement(0, 1, 0))},
    )
    assert resolve_precision(resnet, "auto") == (resnet, None)
    assert asked == [["bf16"]]


@pytest.mark.parametrize("name", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_a_named_precision_is_used_where_it_agrees(name):
    detector = clipspect.load(precision=name, image_size=128)
    assert detector.backbone.precision == detector.settings()["precision"] == name
    assert 0.999 < detector.agreement.rank_correlation < 1


def test_the_command_line_reports_agreement(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    image = str(sorted(DEMO_IMAGES.glob("*hole*"))[0])
    words = [
        "clipspect",
        "detect",
        image,
        "--object",
        "flange",
        "--out",
        str(out),
        "--precision",
        "bf16",
        "--image-size",
        "128",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "rank correlation 0.999" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["settings"]["precision"] == "bf16"
