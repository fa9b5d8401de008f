"""A faster arithmetic is used where its maps were measured to agree with float32, and refused where not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import clipspect
from clipspect.backbones.open_clip import Backbone, load_backbone
from clipspect.cli import main
from clipspect.demo import DEMO_PHOTOS
from clipspect.errors import UsageError
from clipspect.runtimes import precision
from clipspect.runtimes.agreement import Agreement, compare_maps, rank_correlation
from clipspect.runtimes.precision import Measured, choose, measure_precisions, settle_precision

GOOD, BAD = Agreement(1e-4, 0.9999, 1e-4), Agreement(1e-2, 0.99, 1e-4)


def test_rank_correlation_is_spearmans_ties_included():
    random = np.random.default_rng(0)
    a = random.integers(0, 9, 200).astype(np.float32)
    b = (a + random.normal(0, 3, 200)).round().astype(np.float32)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(a, np.ones_like(a)))


def test_the_worst_photograph_counts():
    exact = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 16)
    rough = exact.copy()
    rough[1] = rough[1, ::-1]
    found = compare_maps(exact, rough, np.array([0.5, 0.5]), np.array([0.5, 0.75]))
    assert found.rank_correlation == pytest.approx(-1)
    assert found.max_abs == pytest.approx(15 / 31, abs=1e-6)
    assert found.score_max_abs == 0.25


@pytest.mark.parametrize("bad", [BAD, Agreement(0, float("nan"), 0)])
def test_too_little_agreement_is_refused_with_the_figures(bad):
    GOOD.check("bf16")
    with pytest.raises(UsageError, match=r"bf16 was measured and refused.*Use fp32"):
        bad.check("bf16")


def test_the_fastest_that_agrees_is_chosen():
    exact = Agreement(0, 1, 0)
    found = {"fp32": Measured(10, exact), "bf16": Measured(4, GOOD), "fp16": Measured(2, BAD)}
    assert choose(found) == "bf16"
    assert choose(found | {"bf16": Measured(11, GOOD)}) == "fp32"


def test_the_offline_model_in_bfloat16_is_measured_once_and_says_so(monkeypatch):
    first = clipspect.load(model="tiny", precision="bf16")
    assert first.backbone.precision == first.settings()["precision"] == "bf16"
    assert 0.999 < first.agreement.rank_correlation < 1
    assert 0 < first.agreement.max_abs < 0.01

    def measured_again(*_):
        raise AssertionError("what is in the cache was measured again")

    monkeypatch.setattr(precision, "_maps", measured_again)
    again = clipspect.load(model="tiny", precision="bf16")
    assert again.agreement == first.agreement
    assert again.backbone.fingerprint == first.backbone.fingerprint


def test_float32_is_not_measured_and_a_rounded_copy_leaves_it_as_it_is():
    backbone = load_backbone("tiny")
    before = backbone.fingerprint
    same, agreement = settle_precision(backbone, "fp32")
    assert same is backbone
    assert agreement is None
    rough = backbone.with_precision("bf16")
    assert rough.fingerprint != before
    backbone._fingerprint = None
    assert backbone.fingerprint == before
    with pytest.raises(UsageError, match="already rounded"):
        rough.with_precision("fp16")


def test_maps_that_disagree_stop_a_named_precision_and_turn_auto_to_float32(monkeypatch):
    def scrambled(self, images, request, encode=Backbone.encode):
        features = encode(self, images, request)
        if self.precision == "fp32":
            return features
        noise = torch.Generator().manual_seed(0)
        noisy = {b: t + torch.randn(t.shape, generator=noise) for b, t in features.value_patches.items()}
        return replace(features, value_patches=noisy)

    monkeypatch.setattr(Backbone, "encode", scrambled)
    monkeypatch.setattr(precision, "_recall", lambda *_: None)
    monkeypatch.setattr(precision, "_remember", lambda *_: None)
    backbone = load_backbone("tiny")
    found = measure_precisions(backbone, ["bf16"])
    assert found["bf16"].agreement.rank_correlation < 0.99
    with pytest.raises(UsageError, match="precision bf16 of tiny .* refused"):
        settle_precision(backbone, "bf16")
    monkeypatch.setattr(precision, "fast_precisions", lambda device: ["bf16"])
    assert settle_precision(backbone, "auto") == (backbone, None)


def test_int8_names_the_command_that_has_it_and_the_command_line_reports_agreement(
    tmp_path, monkeypatch, capsys
):
    with pytest.raises(UsageError, match="clipspect export --precision int8"):
        clipspect.load(precision="int8")
    out = tmp_path / "out"
    photograph = str(sorted(DEMO_PHOTOS.glob("*hole*"))[0])
    words = [
        "clipspect",
        "detect",
        photograph,
        "--object",
        "flange",
        "--out",
        str(out),
        "--precision",
        "bf16",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "rank correlation 0.9999" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["settings"]["precision"] == "bf16"
