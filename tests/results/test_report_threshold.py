"""Dragging the threshold of a report in a browser gives what clipspect gives at that threshold."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipspect.results.merge import merge_results
from clipspect.results.run import run_folder
from clipspect.results.store import iterate_rows
from helpers.browser import CHROMIUM, FLAGS
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts

SET = """at => {
  const knob = document.getElementById("threshold");
  knob.value = at; knob.dispatchEvent(new Event("input")); knob.dispatchEvent(new Event("change"));
}"""
STATE = """() => rows.map(row => [row.name, row.verdict, row.regions.length, ...(row.regions[0] ?? []).slice(0, 4)])"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_parts(folder / "parts", good=6, dark=3)
    run_folder(DarkSpotDetector(), folder / "parts", object="part", out=folder / "out", good=KNOWN_GOOD)
    return folder / "out" / "report.html"


@pytest.fixture
def page(report):
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page()
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(report.as_uri())
        page.wait_for_function("rows.every(row => row.cells)")
        yield page
        browser.close()
        assert broken == []


@pytest.mark.parametrize("at", [0.25, 0.4, 0.7, 0.85])
def test_verdicts_and_boxes_are_those_of_the_printed_command(page, report, tmp_path, at):
    page.evaluate(SET, at)
    words = page.input_value("#command").split()
    assert words[:3] == ["clipspect", "results", "filter"]
    assert words[-2:] == ["--threshold", f"{at:.3f}"]
    merge_results([report.parent], tmp_path / "moved", threshold=at)
    rows = {
        row["path"]: row for row in iterate_rows(tmp_path / "moved", ["path", "verdict", "regions", "score"])
    }
    shown = {name: rest for name, *rest in page.evaluate(STATE)}
    assert shown.keys() == rows.keys()
    for name, row in rows.items():
        verdict, count, *box = shown[name]
        assert (verdict, bool(count)) == (row["verdict"], bool(row["regions"])), name
        if box:  # the report's maps have 256 levels
            first = row["regions"][0]
            assert box == pytest.approx([first[key] for key in ("left", "top", "width", "height")], abs=2)
    flagged = sum(row["verdict"] == "flagged" for row in rows.values())
    assert f"At {at:.3f}: {flagged} image" in page.inner_text("#what-if")


def test_the_way_back_restores_what_the_run_judged(page):
    before = page.evaluate(STATE)
    page.evaluate(SET, page.evaluate("Number(knob.max)"))
    assert page.evaluate(STATE) != before
    page.click("#reset")
    assert page.evaluate(STATE) == before
    assert not page.is_visible("#command")


def test_the_histogram_itself_is_dragged(page):
    box = page.locator("#histogram").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 60)
    page.mouse.up()
    low, high = page.evaluate("[data.histogram.low, data.histogram.high]")
    assert page.evaluate("threshold") == pytest.approx(low + 0.2 * (high - low), abs=0.02)
