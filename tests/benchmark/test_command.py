"""`clipspect benchmark`: tables, figures, refusals before anything is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipspect.backbones.loader import load_backbone
from clipspect.benchmark import runner as module
from helpers.benchmark import command


def test_the_command_writes_tables_and_figures(own, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: clipspect[benchmark]")
    options = [
        "benchmark", "--data", "folder", "--root", str(own), "--methods", "dual-image,anoclip+", "--image-size", "64",
        "--sweep", "references=1,2", "--sweep", "epochs=0,2", "--out", str(tmp_path / "out"),
        "--json", str(tmp_path / "rows.json"), "--table", str(tmp_path / "rows.md"),
        "--figures", str(tmp_path / "figures"),
    ]  # fmt: skip
    assert command(monkeypatch, *options) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["settings"] for row in rows] == [
        {"references": 1}, {"references": 2}, {"epochs": 0}, {"epochs": 2},
    ]  # fmt: skip
    sizes = {}
    for name in ("maps-tiny-trained-0-plate.png", "sweep-references.png", "sweep-epochs.png"):
        with Image.open(tmp_path / "figures" / name) as figure:
            sizes[name] = figure.size
            assert len(np.unique(np.asarray(figure))) > 50
    assert {row["fingerprint"] for row in rows} == {load_backbone("tiny", device="cpu").fingerprint}
    assert f"fingerprint of tiny trained: {rows[0]['fingerprint'][:16]}" in (tmp_path / "rows.md").read_text(
        encoding="utf-8"
    )
    assert sizes["maps-tiny-trained-0-plate.png"][1] > 800  # the image and four maps, one below the other
    again = ["figure", str(tmp_path / "rows.json"), "--setting", "epochs", "--out", str(tmp_path / "e.png")]
    assert command(monkeypatch, *again) == 0
    assert (tmp_path / "e.png").is_file()
    assert "references=2" in capsys.readouterr().out


def test_the_command_says_what_failed(own, tmp_path, monkeypatch, capsys):
    (own / "good/001.jpg").write_bytes(b"broken")
    options = ["--root", str(own), "--image-size", "64", "--out", str(tmp_path / "out")]
    assert command(monkeypatch, "benchmark", "--data", "folder", *options) == 3
    assert "good/001.jpg failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "anoclip,anoclip"], "only once"),
        (["--methods", "patchcore"], "unknown method"),
        (["--set", "references=2"], "none of anoclip has a setting 'references'"),
        (["--methods", "winclip+", "--shots", "0"], "winclip+ needs references"),
        (["--seeds", "x"], "whole numbers"),
        (["--categories", "nut"], "has no categories"),
        (["--table", "t.xlsx"], "unsupported suffix; use .md"),
        (["--sweep", "references"], "name=value"),
    ],
)
def test_wrong_options_are_told_before_anything_is_measured(
    own, tmp_path, monkeypatch, capsys, options, said
):
    monkeypatch.setattr(module, "load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "benchmark", "--data", "folder", "--root", str(own), *options) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_preset_gives_its_settings_to_the_methods_that_have_them(own, tmp_path, monkeypatch):
    options = [
        "--data",
        "folder",
        "--root",
        str(own),
        "--model",
        "tiny",
        "--image-size",
        "64",
        "--limit",
        "2",
    ]
    options += ["--preset", "dual-image-paper", "--methods", "anoclip,dual-image", "--pro", "200-thresholds"]
    options += ["--json", str(tmp_path / "rows.json"), "--out", str(tmp_path / "out")]
    assert command(monkeypatch, "benchmark", *options) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["settings"]) for row in rows] == [("anoclip", {}), ("dual-image", {})]
    assert all(any("200 thresholds" in text for text in row["warnings"]) for row in rows)
    (stored,) = (tmp_path / "out" / "results").rglob("*.json")
    kept = json.loads(stored.read_text(encoding="utf-8"))["entrants"]["dual-image"]["settings"]
    assert (kept["pairing"], kept["references"], kept["fusion"]) == ("random", 1, "mean")
