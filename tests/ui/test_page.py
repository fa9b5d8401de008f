"""The page in a real browser: what a person presses, and what they then see. Skipped where no Chromium is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.conftest import free_port, photo

pytest.importorskip("gradio", reason="the page's extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import sync_playwright

from clipspect.server.engine import Engine
from clipspect.server.limits import Limits
from clipspect.ui.host import launch
from clipspect.ui.layout import build_page
from helpers.browser import CHROMIUM, FLAGS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def page_engine(small_model, tmp_path_factory):
    return Engine((str(small_model),), references=tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def address(page_engine):
    port = free_port()
    limits = Limits(images=5)
    blocks = build_page(page_engine, limits)
    launch(blocks, limits, host="127.0.0.1", port=port, prevent_thread_lock=True)
    yield f"http://127.0.0.1:{port}/"
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page at a width; afterwards nothing may have been asked of another machine, nor have failed."""
    asked: list[str] = []
    broken: list[str] = []
    opened = []

    def make(width: str = "desk"):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        page = browser.new_page(viewport=size)
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#inspect")
        opened.append(page)
        return page

    yield make
    for page in opened:
        page.close()
    elsewhere = [
        url for url in asked if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))
    ]
    assert not elsewhere
    assert not broken


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"plate {number}.png")
        paths[-1].write_bytes(photo(number, size=(160, 160)))
    return paths


def upload(page, where: str, paths) -> None:
    """Give files to a drop area and wait until it lists them."""
    one = Path(paths) if isinstance(paths, str | Path) else None
    page.set_input_files(f"#{where} input[type=file]", str(one) if one else [str(path) for path in paths])
    count = len(list(one.iterdir())) if one else len(paths)
    page.wait_for_function(f"document.querySelectorAll('#{where} tr.file').length === {count}")


def press_and_wait(page, button: str, status: str) -> str:
    page.click(f"#{button}")
    page.wait_for_function(f"/ in \\d+\\.\\d s$/.test(document.querySelector('#{status}').innerText.trim())")
    return page.inner_text(f"#{status}")


def inspect(page, paths, object_name: str = "plate") -> str:
    upload(page, "images", paths)
    page.fill("#object textarea, #object input", object_name)
    status = press_and_wait(page, "inspect", "status")
    page.wait_for_selector("#overlay img")
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('score')")
    return status


def boxes(page, *names: str) -> list[dict[str, float]]:
    """Where elements are, all at one moment: the page may still be scrolling."""
    return page.evaluate(
        "names => names.map(name => document.getElementById(name).getBoundingClientRect().toJSON())", names
    )


def set_slider(page, name: str, value: float) -> None:
    """Move a slider and wait until the verdict speaks of the new value."""
    page.locator(f"#{name} input[type=range]").fill(f"{value:.2f}")
    said = f"threshold {value:g}"
    page.wait_for_function("said => document.querySelector('#verdict').innerText.includes(said)", arg=said)


@pytest.mark.parametrize("width", list(WIDTHS))
def test_an_image_is_inspected_and_the_slider_redraws_without_encoding(
    open_page, pictures, page_engine, monkeypatch, width, tmp_path
):
    page = open_page(width)
    assert not page.is_visible("#threshold"), "there is nothing to move yet"
    assert "1 image with anoclip" in inspect(page, pictures[:1])
    assert "no threshold can be estimated" in page.inner_text("#threshold")
    assert "undecided" in page.inner_text("#verdict")
    assert "plate 0.png" in page.inner_text("#verdict")
    detector = page_engine.detector(("anoclip",), page_engine.models[0])
    monkeypatch.setattr(type(detector.backbone), "encode", lambda *_: pytest.fail("encoded again"))
    before = page.get_attribute("#overlay img", "src")
    set_slider(page, "threshold", 0.99)
    assert "no region" in page.inner_text("#verdict")
    set_slider(page, "threshold", 0.3)
    assert "flagged" in page.inner_text("#verdict")
    assert page.locator("#regions tbody tr").count() >= 1
    page.wait_for_function("old => document.querySelector('#overlay img').src !== old", arg=before)
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)


def test_overlay_map_and_table_are_downloaded(open_page, pictures, tmp_path):
    page = open_page()
    inspect(page, pictures)
    got = {}
    for what in ("overlay", "map", "csv"):
        with page.expect_download() as download:
            page.click(f"#make-{what}")
        got[what] = tmp_path / what
        download.value.save_as(got[what])
    assert Image.open(got["overlay"]).size == (160, 160)
    score_map = np.asarray(Image.open(got["map"]))
    assert (score_map.shape, score_map.dtype) == ((160, 160), np.uint16)
    rows = list(csv.DictReader(got["csv"].read_text("utf-8-sig").splitlines()))
    assert sorted(row["path"] for row in rows) == [path.name for path in pictures]
    assert rows[0]["score"] >= rows[1]["score"]
    assert score_map.max() / 65535 == pytest.approx(float(rows[0]["score"]), abs=0.05)


def test_without_heat_and_regions_the_overlay_is_the_image(open_page, pictures, tmp_path):
    page = open_page()
    inspect(page, pictures[:1])
    set_slider(page, "threshold", 0.99)
    colours = []
    for opacity in (1, 0):
        before = page.get_attribute("#overlay img", "src")
        page.locator("#opacity input[type=range]").fill(str(opacity))
        page.wait_for_function("old => document.querySelector('#overlay img').src !== old", arg=before)
        with page.expect_download() as download:
            page.click("#make-overlay")
        download.value.save_as(tmp_path / "overlay.png")
        colours.append(np.asarray(Image.open(tmp_path / "overlay.png")))
    assert np.array_equal(colours[1], np.asarray(Image.open(pictures[0]).convert("RGB")))
    assert np.abs(colours[0].astype(int) - colours[1]).max() > 30


@pytest.mark.parametrize("width", list(WIDTHS))
def test_a_folder_is_inspected_and_other_files_in_it_are_passed_over(open_page, pictures, width):
    folder = pictures[0].parent
    (folder / "notes.txt").write_text("not an image")
    page = open_page(width)
    page.get_by_role("tab", name="Folder").click()
    upload(page, "folder", folder)
    page.fill("#object textarea, #object input", "plate")
    assert "3 images with dual-image" in press_and_wait(page, "inspect", "status")
    page.wait_for_selector("#gallery img")
    assert page.locator("#gallery .thumbnail-item").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    first = page.inner_text("#verdict")
    page.locator("#gallery .thumbnail-item").nth(2).click()
    page.wait_for_function("old => document.querySelector('#verdict').innerText !== old", arg=first)


@pytest.mark.parametrize("width", list(WIDTHS))
def test_methods_are_compared_side_by_side(open_page, pictures, width, tmp_path):
    page = open_page(width)
    upload(page, "images", pictures)
    page.fill("#object textarea, #object input", "plate")
    page.get_by_role("tab", name="Compare methods").click()
    assert "3 images" in press_and_wait(page, "compare", "compare-status")
    page.wait_for_function("document.querySelectorAll('#side-by-side img').length === 3")
    shown = page.inner_text("#compare-table")
    for method in ("anoclip", "dual-image", "mutual"):
        assert method in shown
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    page.screenshot(path=tmp_path / f"compare-{width}.png", full_page=True)


def test_one_image_is_compared_by_the_methods_that_need_no_other(open_page, pictures):
    page = open_page()
    upload(page, "images", pictures[:1])
    page.fill("#object textarea, #object input", "plate")
    page.get_by_role("tab", name="Compare methods").click()
    page.click("#compare")
    page.wait_for_function(
        "document.querySelector('#compare-status').innerText.includes('without dual-image, mutual')"
    )
    page.wait_for_function("document.querySelectorAll('#compare-table tbody tr').length === 1")
    assert "anoclip" in page.inner_text("#compare-table tbody")


@pytest.mark.parametrize("width", list(WIDTHS))
def test_a_reference_stands_beside_the_result_and_chooses_a_method_that_looks_at_it(
    open_page, pictures, width, tmp_path
):
    page = open_page(width)
    upload(page, "images", pictures[:1])
    page.click("#references-box button")
    upload(page, "references", pictures[1:2])
    page.fill("#object textarea, #object input", "plate")
    assert "1 image with dual-image" in press_and_wait(page, "inspect", "status")
    page.wait_for_selector("#overlay img")
    page.wait_for_selector("#beside img")
    result, reference = boxes(page, "overlay", "beside")
    if width == "desk":
        assert result["x"] + result["width"] <= reference["x"]
        assert abs(result["y"] - reference["y"]) < 10
        assert abs(result["width"] - reference["width"]) < 10
    else:
        assert result["y"] + result["height"] <= reference["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    page.screenshot(path=tmp_path / f"pair-{width}.png", full_page=True)


def test_three_known_good_images_give_a_threshold_and_a_verdict(open_page, tmp_path):
    good = []
    for number in range(10, 14):
        good.append(tmp_path / f"good {number}.png")
        good[-1].write_bytes(photo(number, size=(160, 160)))
    page = open_page()
    upload(page, "images", good[:1])
    page.click("#references-box button")
    upload(page, "references", good[1:])
    page.fill("#object textarea, #object input", "plate")
    press_and_wait(page, "inspect", "status")
    page.wait_for_selector("#overlay img")
    page.wait_for_function("/clean|flagged/.test(document.querySelector('#verdict').innerText)")
    assert "Threshold from 3 known-good images" in page.inner_text("#threshold")


def test_on_a_phone_the_page_moves_to_what_it_says_and_found(open_page, pictures):
    page = open_page("phone")
    height = WIDTHS["phone"][1]
    upload(page, "images", pictures[:1])
    page.fill("#object textarea, #object input", "plate")
    assert page.locator("#status").bounding_box()["y"] > height
    page.click("#inspect")
    page.wait_for_selector("#overlay img")
    page.wait_for_function(
        "half => { const box = document.querySelector('#status').getBoundingClientRect();"
        " return box.top > -20 && box.bottom < half; }",
        arg=height / 2,
    )


def test_the_example_of_a_pair_fills_everything_and_is_inspected(open_page):
    page = open_page()
    page.click("#example-pair")
    page.wait_for_function("/ in \\d+\\.\\d s$/.test(document.querySelector('#status').innerText.trim())")
    page.wait_for_selector("#overlay img")
    page.wait_for_selector("#beside img")
    assert page.input_value("#object textarea, #object input") == "metal bracket"
    assert page.input_value("#method input") == "automatic"
    assert "with dual-image" in page.inner_text("#status")
    assert page.locator("#references tr.file").count() == 1


def test_an_image_that_cannot_be_scored_is_named_and_the_others_are_shown(open_page, pictures, tmp_path):
    cut = tmp_path / "cut short.png"
    cut.write_bytes(pictures[2].read_bytes()[:2000])
    page = open_page()
    upload(page, "images", [pictures[0], cut, pictures[1]])
    page.fill("#object textarea, #object input", "plate")
    page.click("#inspect")
    page.wait_for_function("document.querySelector('#status').innerText.includes('cut short.png could not')")
    page.wait_for_selector("#gallery img")
    assert page.locator("#gallery .thumbnail-item").count() == 2


def test_what_cannot_be_done_is_said_and_nothing_breaks(open_page, pictures, tmp_path):
    page = open_page()
    page.click("#inspect")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Drop an image')")
    lying = tmp_path / "photo.png"
    lying.write_bytes(b"<script>alert(1)</script>")
    upload(page, "images", [lying])
    page.fill("#object textarea, #object input", "plate")
    page.click("#inspect")
    page.wait_for_function("document.querySelector('#status').innerText.includes('not a JPEG')")
    page.reload()
    page.wait_for_selector("#inspect")
    assert "1 image" in inspect(page, pictures[:1])


def test_two_visitors_do_not_see_each_others_images(open_page, pictures):
    one, other = open_page(), open_page()
    inspect(one, pictures[:1])
    inspect(other, pictures[1:2])
    assert "plate 0.png" in one.inner_text("#verdict")
    one.bring_to_front()  # a browser lets pages in the background sleep
    set_slider(one, "threshold", 0.99)
    assert "plate 0.png" in one.inner_text("#verdict")


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere(address):
    import urllib.request

    with urllib.request.urlopen(address, timeout=10) as response:
        policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
