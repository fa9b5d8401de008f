"""What a person does in a report, in a real browser: look, compare, group, review, export."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipspect.results.report import write_report
from clipspect.results.run import run_folder
from helpers.browser import new_page, wait_until
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts

pytestmark = pytest.mark.integration

SIDE = 320


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Ten good parts in ``good``, three with a dark spot in ``spot``, one file that is no image."""
    folder = tmp_path_factory.mktemp("run")
    write_parts(folder / "parts" / "good", good=10, dark=0, size=(SIDE, SIDE))
    write_parts(folder / "parts" / "spot", good=1, dark=3, size=(SIDE, SIDE))
    (folder / "parts" / "empty.png").write_bytes(b"")
    run_folder(DarkSpotDetector(), folder / "parts", object="part", out=folder / "out", good=KNOWN_GOOD)
    (folder / "out" / "overlays" / "spot" / "part-0001.png.png").unlink()
    return write_report(folder / "out")


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(report, request):
    width, height = request.param
    with new_page(width, height) as page:
        broken: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        show_gallery(page)
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert broken == []
    own = ("data:", "blob:", report.as_uri(), (report.parent / "overlays").as_uri())
    assert [url for url in asked if not url.startswith(own)] == []


def show_gallery(page) -> None:
    """Scroll to the images: cards exist near the window only."""
    page.wait_for_selector("#gallery", state="attached")
    page.evaluate("document.querySelector('#gallery').scrollIntoView()")
    page.wait_for_selector(".card")


def names(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.card')].map(card => card.dataset.name)")


def open_first(page) -> None:
    page.locator(".card").first.click()
    page.wait_for_selector("#view[open] .viewport canvas")


def pixels_of(page, which: int) -> np.ndarray:
    """What a stage of the open image shows."""
    page.wait_for_timeout(150)
    data = page.locator(".viewport").nth(which).screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_zoom_keeps_the_pointer_in_place_and_the_map_sharp(page):
    open_first(page)
    page.keyboard.press("h")
    box = page.locator(".viewport").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -1200)
    wait_until(page, "parseInt(document.querySelector('#zoom').innerText) > 300")
    page.keyboard.press("0")
    assert page.inner_text("#zoom") == "100 %"
    page.keyboard.press("+")
    assert page.inner_text("#zoom") == "150 %"
    page.click("#view-regions .link")  # zooms to the dark spot at columns 10 to 19
    page.wait_for_timeout(100)
    assert page.inner_text("#zoom") == "400 %"


def test_heat_is_seen_beside_and_without_the_photo_and_blinks(page):
    open_first(page)
    assert page.locator("#pair figure").count() == 2
    plain, heated = pixels_of(page, 0), pixels_of(page, 1)
    assert np.ptp(plain, axis=2).max() < 40, "the photo is gray"
    assert np.ptp(heated, axis=2).max() > 90, "the heat is not"
    page.keyboard.press("p")
    assert page.locator("#pair figcaption").all_inner_texts() == ["Image"]
    page.keyboard.press("b")
    wait_until(page, "document.querySelector('#pair figcaption').innerText === 'Image'")
    wait_until(page, "document.querySelector('#pair figcaption').innerText === 'Heat and regions'")


def test_the_overlay_is_offered_only_where_the_file_is(page):
    page.fill("#search", "spot/part-0003")
    page.wait_for_selector('.card[data-name="spot/part-0003.png"]')
    wait_until(page, "document.querySelectorAll('.card').length === 1")
    open_first(page)
    page.wait_for_selector("#view-overlay")
    assert page.get_attribute("#view-overlay", "href") == "overlays/spot/part-0003.png.png"
    page.click("#close")
    # The focus goes back to the card; a fill before that would type into the card.
    wait_until(page, "document.activeElement.dataset.name === 'spot/part-0003.png'")
    page.fill("#search", "spot/part-0001")
    page.wait_for_selector('.card[data-name="spot/part-0001.png"]')
    wait_until(page, "document.querySelectorAll('.card').length === 1")
    open_first(page)
    page.wait_for_timeout(300)
    assert page.locator("#view-overlay").count() == 0


def test_a_report_without_its_folder_offers_no_overlay(report, tmp_path):
    mailed = tmp_path / "report.html"
    mailed.write_bytes(report.read_bytes())
    with new_page() as page:
        page.goto(mailed.as_uri())
        show_gallery(page)
        open_first(page)
        page.wait_for_timeout(300)
        assert page.locator("#view-overlay").count() == 0
        assert page.inner_text("#view-score")


def test_the_heat_slider_changes_the_cards(page):
    card = page.locator('.card[data-name="spot/part-0001.png"] .frame')
    page.select_option("#heat-marks", "none")

    def colorfulness() -> int:
        picture = np.asarray(Image.open(io.BytesIO(card.screenshot())).convert("RGB")).astype(int)
        return int(np.ptp(picture, axis=2).max())

    for opacity, expected in (("0", False), ("100", True), ("0", False)):
        page.locator("#heat").fill(opacity)
        for _ in range(50):  # cards are drawn a few milliseconds per frame
            if (colorfulness() > 100) is expected:
                break
            page.wait_for_timeout(50)
        assert (colorfulness() > 100) is expected, opacity


def test_ground_truth_follows_the_dragged_threshold(page):
    assert "3 found" in page.inner_text("#confusion")
    assert "1 missed" in page.inner_text("#confusion")
    page.locator("#threshold").fill(page.get_attribute("#threshold", "min"))
    assert "10 false alarms" in page.inner_text("#confusion")
    assert "0 missed" in page.inner_text("#confusion")
    page.select_option("#sort", "mistakes")
    show_gallery(page)
    assert names(page)[0].startswith("good/")
    page.click("#filters [data-key=mistakes]")
    assert page.inner_text("#shown") == "10 images shown"


def test_images_are_grouped_and_an_empty_selection_says_so(page):
    page.select_option("#group", "folder")
    page.wait_for_selector(".group-title")
    page.select_option("#group", "none")
    page.fill("#search", "no such name")
    assert "No name contains “no such name”" in page.inner_text("#gallery")
    page.fill("#search", "")
    page.click("#filters [data-key=errors]")
    assert "1 image failed" in page.inner_text("#errors")
    assert "empty.png" in page.inner_text("#errors")


def test_a_review_by_keyboard_is_exported_and_undone(page, tmp_path):
    order = names(page)[:3]
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#view[open]")
    page.keyboard.press("r")
    assert page.inner_text("#view-name") == order[1]
    page.keyboard.press("n")
    page.keyboard.type("dust, no dent")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    page.keyboard.type("dust")
    page.keyboard.press("Enter")
    page.keyboard.press("a")
    page.keyboard.press("a")
    page.keyboard.press("u")
    assert page.inner_text("#view-name") == order[2]
    page.keyboard.press("Escape")
    wait_until(page, "!document.querySelector('#view').open")
    assert "2 images of 14: 1 accepted, 1 rejected" in page.inner_text("#review-bar")
    for kind in ("json", "csv"):
        with page.expect_download() as download:
            page.click(f"#export-{kind}")
        download.value.save_as(tmp_path / f"review.{kind}")
    images = json.loads((tmp_path / "review.json").read_text(encoding="utf-8"))["images"]
    decided = {image["name"]: (image["decision"], image["note"], image["tags"]) for image in images}
    assert decided == {order[0]: ("reject", "", []), order[1]: ("accept", "dust, no dent", ["dust"])}
    with (tmp_path / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: row["decision"] for row in rows} == {order[0]: "reject", order[1]: "accept"}
    page.select_option("#group", "tag")
    show_gallery(page)
    assert "dust · 1 image" in page.locator(".group-title").all_inner_texts()
    page.reload()
    show_gallery(page)
    assert "1 accepted, 1 rejected" in page.inner_text("#review-bar"), "kept by the browser"
