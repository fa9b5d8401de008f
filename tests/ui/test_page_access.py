"""The page by keyboard, on a phone and with errors; what it refuses other sites and other people."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from clipspect.backbones.presets import PRESETS
from helpers.browser import CHROMIUM, wait_until
from helpers.page import WIDTHS, give, inspect, press, show_gallery
from server.conftest import photo

pytest.importorskip("fastapi", reason="the page's extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
AXE = Path(__file__).parents[2] / "viewer" / "node_modules" / "axe-core" / "axe.min.js"


def test_on_a_phone_the_page_moves_to_what_it_says_and_found(open_page, pictures):
    page = open_page("phone")
    give(page, "images", pictures[:1])
    page.fill("#object", "plate")
    assert page.locator("#status").bounding_box()["y"] > WIDTHS["phone"][1] / 2
    press(page)
    wait_until(
        page,
        "(() => { const box = document.querySelector('#status').getBoundingClientRect();"
        f" return box.top > -30 && box.bottom < {WIDTHS['phone'][1] / 2}; }})()",
    )


def test_the_page_says_what_the_name_of_the_object_does_with_the_offline_model(open_page):
    page = open_page()
    assert page.locator("#object-note").count() == 0, "the fixture's model has no note"

    def answer(route):
        found = route.fetch().json()
        found["models"][0]["object_note"] = PRESETS["tiny"].object_note
        route.fulfill(json=found)

    page.route("**/v1/models", answer)
    page.reload()
    assert "only picks the prompt templates" in page.inner_text("#object-note")


def test_errors_are_beside_what_they_are_about_and_nothing_breaks(open_page, pictures, tmp_path):
    page = open_page()
    page.click("#inspect")
    assert "Drop or choose an image" in page.inner_text("#images .field-error")
    lying = tmp_path / "photo.png"
    lying.write_bytes(b"<script>alert(1)</script>")
    give(page, "images", [lying])
    page.click("#inspect")
    assert "Name the object" in page.inner_text(".form")
    page.fill("#object", "plate")
    page.click("#inspect")
    page.wait_for_selector("#form-error")
    assert page.inner_text("#form-error").startswith("photo.png: is not a JPEG")
    page.click("#images-clear")
    assert "1 image" in inspect(page, pictures[:1])
    give(page, "images", pictures * 5)
    page.click("#inspect")
    page.wait_for_selector("#form-error")
    assert "the limit is 14" in page.inner_text("#form-error")


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>.png", "a&b'\".png"])
def test_file_names_stay_text(open_page, name, tmp_path):
    (tmp_path / name).write_bytes(photo(0, size=(160, 160)))
    page = open_page()
    inspect(page, [tmp_path / name], "<b>plate</b>")
    assert page.inner_text("#view-name") == name
    assert page.locator("#viewer img[onerror], #viewer b:text-is('plate')").count() == 0


def test_two_visitors_do_not_see_each_others_images(open_page, pictures):
    one, other = open_page(), open_page()
    inspect(one, pictures[:1])
    inspect(other, pictures[1:2])
    assert one.inner_text("#view-name") == "plate 0.png"
    assert other.inner_text("#view-name") == "plate 1.png"


def test_everything_can_be_done_with_the_keyboard(open_page, pictures):
    page = open_page()
    give(page, "images", pictures)
    page.focus("#object")
    page.keyboard.type("plate")
    page.keyboard.press("Enter")
    wait_until(page, "/ in \\d+\\.\\d s\\./.test(document.querySelector('#status').innerText)")
    show_gallery(page)
    page.focus("#threshold")
    before = page.input_value("#threshold")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#threshold") != before
    page.locator(".card").first.focus()
    first = page.evaluate("document.activeElement.dataset.name")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.name") != first
    page.keyboard.press("r")
    page.wait_for_selector(".card .decision.reject")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view[open]")
    page.keyboard.press("Escape")
    wait_until(page, "!document.querySelector('#view').open")
    assert page.evaluate("document.activeElement.className") == "card"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
def test_axe_finds_no_accessibility_problem(open_page, pictures, width, scheme):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed; run make viewer")
    page = open_page(width, scheme)
    problems: list[str] = []

    def check(where: str) -> None:
        page.wait_for_timeout(300)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")
        for problem in found["violations"]:
            nodes = [node["html"][:120] for node in problem["nodes"][:3]]
            problems.append(f"{where}: {problem['id']}: {problem['help']}: {nodes}")

    page.click("#inspect")
    check("form with errors")
    inspect(page, pictures)
    show_gallery(page)
    check("gallery")
    page.locator(".card").first.click()
    page.wait_for_selector("#view[open]")
    check("one image")
    assert problems == []


def test_the_browser_is_told_to_run_the_viewer_alone_and_to_fetch_nothing_from_elsewhere(address):
    for path in ("", "viewer/viewer.js", "v1/models"):
        with urllib.request.urlopen(address + path, timeout=10) as response:
            policy = response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "http" not in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize(
    "path", ["viewer/../../settings.py", "v1/examples/..%2Fpy.typed", "viewer/__init__.py"]
)
def test_no_other_file_is_served(address, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address + path, timeout=10)


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://example.com"}, {"Host": "example.com"}, {"Origin": "null"}]
)
def test_requests_that_other_sites_cause_are_refused(address, headers):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(address + "v1/models", headers=headers), timeout=10)
