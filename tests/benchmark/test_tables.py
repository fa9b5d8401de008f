"""Tables of a benchmark: the same figures in every format, the papers' layout, published results."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import clipspect
from clipspect.benchmark.rows import make_rows, mean_rows, published_rows
from clipspect.benchmark.tables import summary_rows, write_table
from clipspect.errors import UsageError
from clipspect.training.layouts import write_layout
from helpers.benchmark import COLUMNS, run


def test_tables_in_every_format(own, tmp_path):
    rows = make_rows(run(own, tmp_path / "out", "anoclip,dual-image", weights=["trained", "random"]))
    rows = [replace(row, data="mvtecad") for row in rows]
    about = {"machine": "a machine", "command": "clipspect benchmark"}
    for suffix in (".md", ".csv", ".tex", ".json"):
        write_table(tmp_path / f"table{suffix}", rows, about)
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [list(row)[:11] for row in table] == [COLUMNS] * 4
    assert table[0]["seconds_per_image"] > 0
    assert table[0]["versions"]["clipspect"] == clipspect.__version__
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["aupro"]) for line in lines] == [row["aupro"] for row in table]
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert f"| anoclip | tiny | trained | plate | {table[0]['image_auroc']:.3f} |" in markdown
    assert (
        "| WinCLIP | ViT-B-16-plus-240 | published | mean | 0.918 | 0.965 | 0.929 | 0.851 | – | 0.317 | 0.646 | – |"
        in markdown
    )
    assert "WinCLIP: published, not measured here: arXiv 2303.14814" in markdown
    assert "machine: a machine" in markdown
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"WinCLIP$^\dagger$" in latex
    assert rf"& {table[0]['seconds_per_image']:.3f} \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    with pytest.raises(UsageError, match=r"unsupported suffix; use \.md, \.csv, \.json, \.tex"):
        write_table(tmp_path / "table.html", rows, about)


def test_several_categories_get_the_papers_table(tmp_path, pictures):
    for name in ("nut", "bolt_2"):
        write_layout("folder", tmp_path / "data", name, pictures)
    rows = make_rows(run(tmp_path / "data", tmp_path / "out", "anoclip,clip"))
    mean = mean_rows(rows)[0]
    assert mean.values["aupro"] == pytest.approx(
        np.mean([r.values["aupro"] for r in rows if r.label == "anoclip"])
    )
    write_table(tmp_path / "t.tex", rows, {})
    latex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert r"bolt\_2 & " in latex
    assert latex.count(r"\begin{tabular}") == 2
    assert [row.category for row in summary_rows(rows)] == ["mean", "mean"]


def test_published_rows_name_their_sources_and_lie_in_range():
    rows = published_rows("mvtecad", 15) + published_rows("visa", 12)
    assert {row.method for row in rows} == {
        "WinCLIP", "AnomalyCLIP", "MuSc", "CoDeGraph", "AnomalyVFM", "AnomalyVFM, own code", "VisualAD",
        "SubspaceAD 1-shot", "AnomalyDINO 1-shot", "AnoVL", "AnoVL, BaoIAD", "Tipsomaly",
    }  # fmt: skip
    assert all(row.source for row in rows)
    assert all(0.1 < v < 1 for row in rows for v in row.values.values() if v is not None)
    assert not any("ours are over" in row.source for row in rows)
    assert "a mean over 15 categories, ours are over 2" in published_rows("mvtecad", 2)[0].source
