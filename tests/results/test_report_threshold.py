"""Dragging the threshold of a report in a browser gives what clipspect gives at that threshold."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipspect.results.merge import merge_results
from clipspect.results.run import run_folder
from clipspect.results.store import iterate_rows
from helpers.browser import new_page
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts

pytestmark = pytest.mark.integration

SET = """at => {
  const knob = document.getElementById("threshold");
  knob.value = at; knob.dispatchEvent(new Event("input", {bubbles: true}));
}"""
STATE = """() => [...document.querySelectorAll(".card")].map(card => [card.dataset.name, card.dataset.verdict,
  card.querySelectorAll(".box").length, ...(card.querySelector(".box")?.dataset.box.split(" ").map(Number) ?? [])])"""
"""Name, verdict, number of boxes and first box of every card; all cards of so small a run exist."""


def state_of(page) -> list[list]:
    """The cards once they follow the threshold."""
    page.wait_for_timeout(50)
    return sorted(page.evaluate(STATE))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_parts(folder / "parts", good=6, dark=3)
    run_folder(DarkSpotDetector(), folder / "parts", object="part", out=folder / "out", good=KNOWN_GOOD)
    return folder / "out" / "report.html"


@pytest.fixture
def page(report):
    with new_page() as page:
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(report.as_uri())
        page.select_option("#heat-marks", "boxes")
        page.wait_for_selector(".card .box")
        yield page
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
    shown = {name: rest for name, *rest in state_of(page)}
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
    before = state_of(page)
    page.evaluate(SET, page.evaluate("Number(document.getElementById('threshold').max)"))
    assert state_of(page) != before
    page.click("#reset")
    assert state_of(page) == before
    assert not page.is_visible("#command")


def test_the_histogram_itself_is_dragged(page):
    box = page.locator("#histogram").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 60)
    page.mouse.up()
    low, high = (float(page.get_attribute("#histogram", f"data-{end}")) for end in ("low", "high"))
    shown = float(page.text_content("#histogram .limit-text").removeprefix("threshold "))
    assert shown == pytest.approx(low + 0.2 * (high - low), abs=0.02)
    assert f"At {shown:.3f}" in page.inner_text("#what-if")
