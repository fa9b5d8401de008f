"""The page in a real browser: what a person presses, and what they then see. Skipped where no Chromium is."""

from __future__ import annotations

import csv
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipspect
from clipspect.errors import ProfileError
from clipspect.product import create_profile, load_product
from helpers.browser import CHROMIUM, wait_until
from helpers.page import WIDTHS, download, give, good_images, inspect, press, set_threshold, show_gallery
from server.conftest import free_port, photo

pytest.importorskip("fastapi", reason="the page's extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from clipspect.server.limits import Limits
from clipspect.ui.host import page_server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.mark.parametrize("width", list(WIDTHS))
def test_an_image_is_inspected_and_the_slider_redraws_without_encoding(
    open_page, pictures, page_engine, monkeypatch, width
):
    page = open_page(width)
    assert page.locator("#threshold").count() == 0, "there is nothing to move yet"
    assert "1 image with anoclip" in inspect(page, pictures[:1])
    assert "no threshold can be estimated" in page.inner_text(".results")
    assert "Undecided" in page.inner_text(".aside")
    assert page.inner_text("#view-name") == "plate 0.png"
    detector = page_engine.detector(("anoclip",), page_engine.models[0])
    monkeypatch.setattr(type(detector.backbone), "encode", lambda *_: pytest.fail("encoded again"))
    score = float(page.inner_text("#view-score"))
    before = page.locator(".viewport").nth(1).screenshot()
    assert float(page.get_attribute("#threshold", "min")) < 0.1 <= score
    set_threshold(page, float(page.get_attribute("#threshold", "max")))
    assert "No region" in page.inner_text(".aside")
    set_threshold(page, score * 0.6)
    assert "Flagged" in page.inner_text(".aside")
    assert page.locator("#view-regions tbody tr").count() >= 1
    assert page.locator(".viewport").nth(1).screenshot() != before


def test_overlay_map_and_table_are_downloaded(open_page, pictures, tmp_path):
    page = open_page()
    inspect(page, pictures)
    table = download(page, "save-table", tmp_path / "table.csv")
    rows = list(csv.DictReader(table.read_text("utf-8-sig").splitlines()))
    assert sorted(row["path"] for row in rows) == [path.name for path in pictures]
    assert float(rows[0]["score"]) >= float(rows[1]["score"])
    show_gallery(page)
    page.locator(".card").first.click()
    page.wait_for_selector("#view[open] #save-map")
    overlay = Image.open(download(page, "save-overlay", tmp_path / "overlay.png"))
    score_map = np.asarray(Image.open(download(page, "save-map", tmp_path / "map.png")))
    assert overlay.size == (160, 160)
    assert (score_map.shape, score_map.dtype) == ((160, 160), np.uint16)
    assert score_map.max() / 65535 == pytest.approx(float(rows[0]["score"]), abs=0.05)


def test_without_heat_and_regions_the_overlay_is_the_image(open_page, pictures, tmp_path):
    page = open_page()
    inspect(page, pictures[:1])
    page.select_option("#view-heat-marks", "none")
    drawn = []
    for opacity in (100, 0):
        page.locator("#view-heat").fill(str(opacity))
        file = download(page, "save-overlay", tmp_path / "overlay.png")
        drawn.append(np.asarray(Image.open(file).convert("RGB")))
    assert np.array_equal(drawn[1], np.asarray(Image.open(pictures[0]).convert("RGB")))
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 30


def test_a_file_that_browsers_cannot_show_is_shown_as_it_was_scored(open_page, tmp_path):
    Image.open(io.BytesIO(photo(1, size=(160, 160)))).save(tmp_path / "plate.tif")
    page = open_page()
    inspect(page, [tmp_path / "plate.tif"])
    overlay = Image.open(download(page, "save-overlay", tmp_path / "overlay.png"))
    assert overlay.size == (160, 160)


@pytest.mark.parametrize("width", list(WIDTHS))
def test_a_folder_is_inspected_and_other_files_in_it_are_passed_over(open_page, pictures, width):
    folder = pictures[0].parent
    (folder / "notes.txt").write_text("not an image")
    page = open_page(width)
    give(page, "images", folder, "folder")
    page.fill("#object", "plate")
    assert "3 images with dual-image" in press(page)
    show_gallery(page)
    names = page.evaluate("[...document.querySelectorAll('.card')].map(card => card.dataset.name)")
    assert sorted(names) == [f"{folder.name}/plate {number}.png" for number in range(3)]
    page.locator(".card").nth(2).click()
    wait_until(page, f"document.querySelector('#view-name').innerText === {names[2]!r}")


@pytest.mark.parametrize("width", list(WIDTHS))
def test_methods_are_compared_side_by_side(open_page, pictures, width):
    page = open_page(width)
    give(page, "images", pictures)
    page.fill("#object", "plate")
    page.select_option("#method", "several")
    assert "3 images with anoclip, dual-image, mutual" in press(page)
    tabs = page.locator(".method-tabs [role=tab]")
    assert [text.split("\n")[0] for text in tabs.all_inner_texts()] == ["anoclip", "dual-image", "mutual"]
    widths = page.evaluate(
        "[...document.querySelectorAll('.method-tabs [role=tab]')].map(t => t.offsetWidth)"
    )
    assert max(widths) - min(widths) <= 1
    show_gallery(page)
    page.locator(".card").first.click()
    page.wait_for_selector("#view[open]")
    page.keyboard.press("m")
    page.wait_for_selector("#pair.methods")
    assert page.locator("#pair figure").count() == 3


def test_one_image_is_compared_by_the_methods_that_need_no_other(open_page, pictures):
    page = open_page()
    give(page, "images", pictures[:1])
    page.fill("#object", "plate")
    page.select_option("#method", "several")
    said = press(page)
    assert "1 image with anoclip on" in said
    assert "Without dual-image, mutual: needs another image" in said


@pytest.mark.parametrize("width", list(WIDTHS))
def test_a_reference_stands_beside_the_result_and_recommends_a_method_that_looks_at_it(
    open_page, pictures, width
):
    page = open_page(width)
    give(page, "images", pictures[:1])
    assert "anoclip" in page.inner_text("#method-about")
    give(page, "good", pictures[1:2])
    assert "it compares with your known-good images" in page.inner_text("#method-about")
    page.fill("#object", "plate")
    assert "1 image with dual-image" in press(page)
    assert "1 known-good image: no threshold can be estimated" in page.inner_text(".results")
    captions = page.locator("#pair figcaption").all_inner_texts()
    assert captions == ["Image", "Heat and regions", "Reference"]
    _, result, reference = page.evaluate(
        "[...document.querySelectorAll('#pair figure')].map(f => f.getBoundingClientRect().toJSON())"
    )
    if width == "desk":
        assert result["x"] + result["width"] <= reference["x"]
        assert abs(result["y"] - reference["y"]) < 10
    else:
        assert result["y"] + result["height"] <= reference["y"]
    assert abs(result["width"] - reference["width"]) < 10


def test_a_method_that_uses_no_references_is_answered_beside_the_choice(open_page, pictures):
    page = open_page()
    give(page, "images", pictures[:1])
    give(page, "good", pictures[1:2])
    page.fill("#object", "plate")
    page.select_option("#method", "anoclip")
    assert "anoclip uses no known-good images until there are three" in page.inner_text(".form")
    page.click(".form .link")
    assert page.input_value("#method") == "automatic"


def test_three_known_good_images_give_a_threshold_and_a_verdict(open_page, tmp_path):
    good = good_images(tmp_path, 4)
    page = open_page()
    give(page, "images", good[:1])
    give(page, "good", good[1:])
    page.fill("#object", "plate")
    press(page)
    assert {"Clean", "Flagged"} & set(page.inner_text(".aside").split())
    assert "Threshold from 3 known-good images" in page.inner_text(".results")
    assert page.locator("#which-reference option").count() == 3


def test_a_profile_is_saved_and_judges_as_the_known_good_images_did(open_page, pictures, tmp_path):
    page = open_page()
    give(page, "images", pictures)
    give(page, "good", good_images(tmp_path, 4))
    page.fill("#object", "Steel Plate")
    press(page)
    table = download(page, "save-table", tmp_path / "before.csv").read_text("utf-8-sig")
    assert page.input_value("#profile-name") == "steel-plate"
    with page.expect_download() as got:
        page.click("#save-profile")
    assert got.value.suggested_filename == "steel-plate.clipspect"
    got.value.save_as(tmp_path / "steel-plate.clipspect")
    page.reload()
    page.wait_for_selector("#method")
    give(page, "images", pictures)
    page.set_input_files(".pick-profile", tmp_path / "steel-plate.clipspect")
    page.wait_for_selector("#profile .chosen")
    assert page.locator("#good, #object, #method").count() == 0, "the profile gives them"
    assert "with the profile steel-plate.clipspect" in press(page)
    after = download(page, "save-table", tmp_path / "after.csv").read_text("utf-8-sig")
    read = [list(csv.DictReader(text.splitlines())) for text in (table, after)]
    assert [row["verdict"] for row in read[1]] == [row["verdict"] for row in read[0]]
    assert [float(row["score"]) for row in read[1]] == pytest.approx(
        [float(r["score"]) for r in read[0]], abs=1e-5
    )
    page.click("#profile-clear")
    assert page.locator("#object").count() == 1


def test_the_page_opens_with_the_profiles_it_was_started_with(browser, page_engine, pictures, tmp_path):
    detector = page_engine.detector(("anoclip", "dual-image"), page_engine.models[0])
    good = good_images(tmp_path, 4)
    for name, threshold in (("plate", None), ("strict", 0.25)):
        made, _ = create_profile(detector, good, f"{name} steel", name)
        made.with_threshold(threshold).write(tmp_path / f"{name}.clipspect")
    product = load_product(tmp_path / "strict.clipspect")
    expected = {(Path(d.path).name, d.method): d for d in product.detect(pictures)}
    profiles = [tmp_path / "plate.clipspect", tmp_path / "strict.clipspect"]
    port = free_port()
    with page_server(page_engine, Limits(images=14), host="127.0.0.1", port=port, profiles=profiles):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#served-profile")
        assert page.locator("#good, #object, #method").count() == 0, "the profile gives them"
        assert (
            page.inner_text("#profile .chosen")
            == "plate steel: anoclip, dual-image; 4 known-good images; threshold 0.50, 0.50"
        )
        page.select_option("#served-profile", "strict")
        assert "threshold 0.25" in page.inner_text("#profile .chosen")
        give(page, "images", pictures)
        assert "3 images with the profile strict in" in press(page)
        table = download(page, "save-table", tmp_path / "table.csv").read_text("utf-8-sig")
        for row in csv.DictReader(table.splitlines()):
            found = expected[row["path"], row["method"]]
            assert row["verdict"] == found.verdict
            assert float(row["score"]) == pytest.approx(found.score, abs=1e-5)
        page.select_option("#served-profile", "")
        assert page.locator("#object").count() == 1
        page.close()


def test_a_profile_of_other_weights_is_refused_at_the_start(page_engine, small_model, tmp_path):
    detector = clipspect.load("anoclip", model=str(small_model), image_size=48)
    made, _ = create_profile(detector, good_images(tmp_path, 3), "plate", "plate")
    made.write(tmp_path / "plate.clipspect")
    profiles = [tmp_path / "plate.clipspect"]
    with (
        pytest.raises(ProfileError, match=r"plate\.clipspect: plate was made with another input size"),
        page_server(page_engine, Limits(), host="127.0.0.1", port=free_port(), profiles=profiles),
    ):
        pass


def test_a_file_that_is_no_profile_is_refused(open_page, pictures, tmp_path):
    (tmp_path / "wrong.clipspect").write_bytes(b"PK nothing")
    page = open_page()
    give(page, "images", pictures[:1])
    page.set_input_files(".pick-profile", tmp_path / "wrong.clipspect")
    page.click("#inspect")
    page.wait_for_selector("#form-error")
    assert "profile" in page.inner_text("#form-error")


def test_the_example_of_a_pair_fills_everything_and_is_inspected(open_page):
    page = open_page()
    assert "1 image with dual-image" in press(page, "example-pair")
    assert page.input_value("#object") == "metal bracket"
    assert page.input_value("#method") == "automatic"
    assert "1 image" in page.inner_text("#good .chosen")
    assert page.locator("#pair figcaption").last.inner_text() == "Reference"


def test_progress_is_shown_with_stages_and_counts_and_can_be_stopped(
    open_page, pictures, page_engine, monkeypatch
):
    page = open_page()
    detector = page_engine.detector(("dual-image",), page_engine.models[0])
    encode, calls = type(detector.backbone).encode, []

    def slow(self, images, request):
        calls.append(len(images))
        page_engine_hold.wait(20)
        return encode(self, images, request)

    page_engine_hold = threading.Event()
    monkeypatch.setattr(type(detector.backbone), "encode", slow)
    give(page, "images", pictures)
    page.fill("#object", "plate")
    page.click("#inspect")
    wait_until(page, "/of 3 ·/.test(document.querySelector('#progress')?.innerText ?? '')")
    assert page.is_disabled("#inspect")
    page.click("#stop")
    page_engine_hold.set()
    wait_until(page, "document.querySelector('#status').innerText === 'Stopped.'")
    assert "3 images with" in press(page)


def test_an_image_that_cannot_be_scored_is_named_and_the_others_are_shown(open_page, pictures, tmp_path):
    cut = tmp_path / "cut short.png"
    cut.write_bytes(pictures[2].read_bytes()[:2000])
    page = open_page()
    inspect(page, [pictures[0], cut, pictures[1]])
    assert "1 image failed" in page.inner_text("#errors")
    assert "cut short.png" in page.inner_text("#errors")
    show_gallery(page)
    assert page.locator(".card").count() == 2
