"""Figures of benchmarks: the image stays visible, nothing overlaps, masks and thresholds are right."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipspect.benchmark.accumulator import METRICS
from clipspect.benchmark.figures import best_threshold, draw_maps, draw_masks
from clipspect.benchmark.rows import Row
from clipspect.benchmark.samples import Sample
from clipspect.benchmark.sweep_figure import Point, draw_sweep, points_of, read_points
from clipspect.benchmark.tables import write_table
from clipspect.errors import UsageError

pytest.importorskip("matplotlib", reason="matplotlib is not installed: clipspect[benchmark]")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, before they are closed."""
    import matplotlib.pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


@pytest.fixture
def samples(tmp_path):
    """Two striped images with a square defect each, and their masks."""
    found = []
    for number in range(2):
        stripes = np.repeat(np.tile([60, 200], 32)[None, :, None], 64, 0).repeat(3, 2)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 10 + 20 * number : 30 + 20 * number] = 255
        paths = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        Image.fromarray(stripes.astype(np.uint8)).save(paths[0])
        Image.fromarray(mask).save(paths[1])
        found.append(Sample(paths[0], "dent", True, paths[1]))
    return found


@pytest.fixture
def maps(samples):
    """Maps of two methods with different ranges: one finds the defect, the other the left half."""
    truth = [np.asarray(Image.open(sample.mask)) > 0 for sample in samples]
    left = np.repeat((np.arange(64) < 32)[None], 64, 0)
    found = {f"good a|{i}": 0.5 + 0.01 * m for i, m in enumerate(truth)}
    return found | {f"bad with a very long name of its settings|{i}": 0.1 * left for i in range(2)}


LABELS = ["good a", "bad with a very long name of its settings"]


def test_maps_let_the_image_through_and_show_their_range(tmp_path, samples, maps, drawn):
    draw_maps(tmp_path / "maps.png", samples, maps, LABELS, "plates")
    (figure,) = drawn
    bars = [a for a in figure.axes if a.get_label() != "<colorbar>" and a.get_yticklabels()]
    shown = [[t.get_text() for t in a.get_yticklabels()] for a in bars if len(a.get_yticklabels()) == 2]
    assert ["0.50", "0.51"] in shown
    assert ["0.00", "0.10"] in shown
    overlays = [i for a in figure.axes for i in a.images if i.get_alpha() is not None]
    assert len(overlays) == 4
    assert all(0 < image.get_alpha() < 1 for image in overlays)


@pytest.mark.parametrize("draw", [draw_maps, draw_masks])
def test_no_title_or_label_overlaps_another_or_leaves_the_picture(tmp_path, samples, maps, drawn, draw):
    draw(
        tmp_path / "picture.png",
        samples,
        maps,
        LABELS,
        "a title that is long enough to need a second line " * 2,
    )
    (figure,) = drawn
    renderer = figure.canvas.get_renderer()
    texts = [figure._suptitle, *(a.title for a in figure.axes), *(a.yaxis.label for a in figure.axes)]
    boxes = [t.get_window_extent(renderer) for t in texts if t.get_text()]
    assert len(boxes) == 1 + 2 + 3
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_masks_are_red_where_the_map_is_above_its_best_threshold(tmp_path, samples, maps, drawn):
    draw_masks(tmp_path / "masks.png", samples, maps, LABELS, "plates")
    (figure,) = drawn
    pictures = [a.images[0].get_array() for a in figure.axes if a.images]
    truth = np.asarray(Image.open(samples[0].mask)) > 0
    red = pictures[2][..., 0] - pictures[2][..., 2] > 0.2  # the first method on the first image
    np.testing.assert_array_equal(red, truth)


def test_the_best_threshold_is_that_of_brute_force():
    random = np.random.default_rng(0)
    scores = random.integers(0, 20, (12, 12)).astype(np.float32)
    truth = scores + random.normal(0, 6, (12, 12)) > 12

    def f1(threshold):
        cut = scores >= threshold
        return 2 * (cut & truth).sum() / (cut.sum() + truth.sum())

    assert f1(best_threshold(scores, truth)) == max(f1(t) for t in np.unique(scores))


def row(data, settings, label, **figures):
    series = {name: [figures.get(name, 0.5), figures.get(name, 0.5) + 0.02] for name in METRICS}
    return Row(data, "nut", label, "anoclip+", settings, 0, "tiny", "trained", series, seeds=[0, 1])


def test_a_sweep_leaves_out_what_nothing_changes_and_shows_deviations(tmp_path, drawn):
    rows = [
        row("visa", {"epochs": n}, f"e{n}", aupro=0.4 + 0.01 * n, pixel_f1max=0.3 + n / 50) for n in range(3)
    ]
    draw_sweep(tmp_path / "sweep.png", points_of(rows, "epochs"), "epochs")
    (figure,) = drawn
    assert [axis.get_title() for axis in figure.axes] == ["pixel F1-max", "AUPRO"]
    (line,) = figure.axes[1].containers
    assert line.lines[0].get_ydata() == pytest.approx([0.41, 0.42, 0.43])
    assert line.has_yerr
    assert figure.axes[0].get_legend() is None  # it lies below the panels
    assert figure.legends[0].get_window_extent().y1 < figure.axes[0].get_window_extent().y0


def test_names_are_not_joined_by_a_line(tmp_path, drawn):
    points = [
        Point(
            "a",
            name,
            {"image_auroc": 0.5, "pixel_auroc": 0.5, "pixel_f1max": v, "aupro": v},
            dict.fromkeys(METRICS),
        )
        for name, v in (("text", 0.1), ("visual", 0.3))
    ]
    draw_sweep(tmp_path / "sweep.png", points, "output")
    assert drawn[0].axes[0].containers[0].lines[0].get_linestyle() == "None"
    assert [t.get_text() for t in drawn[0].axes[0].get_xticklabels()] == ["text", "visual"]


def test_files_of_two_data_sets_become_two_lines(tmp_path):
    for data, shift in (("visa", 0.0), ("mvtecad", 0.1)):
        rows = [row(data, {"epochs": n}, f"e{n}", aupro=0.4 + shift + 0.01 * n) for n in range(2)]
        write_table(tmp_path / f"{data}.json", rows, {})
    points = [p for data in ("visa", "mvtecad") for p in read_points(tmp_path / f"{data}.json", "epochs")]
    assert [(p.value, round(p.figures["aupro"], 3)) for p in points] == [
        (0, 0.41),
        (1, 0.42),
        (0, 0.51),
        (1, 0.52),
    ]
    assert len({p.line for p in points}) == 2
    (tmp_path / "other.json").write_text(json.dumps([{"a": 1}]))
    with pytest.raises(UsageError, match="not a file of clipspect benchmark --json"):
        read_points(tmp_path / "other.json", "epochs")


def test_a_sweep_without_two_values_or_without_any_change_is_refused(tmp_path):
    flat = [row("visa", {"epochs": n}, f"e{n}") for n in range(2)]
    with pytest.raises(UsageError, match="no metric changes with epochs"):
        draw_sweep(tmp_path / "sweep.png", points_of(flat, "epochs"), "epochs")
    with pytest.raises(UsageError, match="sweep it: --sweep epochs=1,2,4"):
        draw_sweep(tmp_path / "sweep.png", points_of(flat[:1], "epochs"), "epochs")


def test_a_tied_value_is_not_bold_in_latex(tmp_path):
    rows = [row("folder", {}, "one", aupro=0.4), row("folder", {}, "two", aupro=0.6)]
    write_table(tmp_path / "t.tex", rows, {})
    latex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert latex.count(r"\textbf") == 1
    assert r"\textbf{61.0$\pm$1.4}" in latex
