"""The operator's view of a watch: its numbers, its pictures, its keys, and what it refuses."""

from __future__ import annotations

from datetime import datetime

import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None
from PIL import Image

import clipspect
from clipspect.errors import ResultsError, UsageError
from clipspect.results.review import read_reviews
from clipspect.server.http_server import HttpServer
from clipspect.ui.line import create_line_page, line_state, parse_shifts, shift_start
from clipspect.watch.sources import FolderSource
from clipspect.watch.watcher import Watcher
from helpers.browser import CHROMIUM, FLAGS
from helpers.images import plate
from server.conftest import free_port

SHIFTS = [(0, 0)]


@pytest.fixture(scope="module")
def line(tmp_path_factory, small_model):
    """Results of a watch over six plates, three of them flagged."""
    folder = tmp_path_factory.mktemp("line")
    detector = clipspect.load("anoclip", model=str(small_model))
    made, _ = clipspect.create_profile(detector, [plate(n) for n in range(100, 110)], "plate", "plate")
    product = clipspect.load_product(made)
    scores = {}
    (folder / "in").mkdir()
    for number in range(6):
        pixels = plate(number, blot=number < 3)
        Image.fromarray(pixels).save(folder / "in" / f"{number}.png")
        scores[number] = product.detect(pixels).score
    chosen = sorted(scores.values())[2:4]
    product = clipspect.load_product(made.with_threshold(sum(chosen) / 2))
    (folder / "in" / "broken.png").write_bytes(b"no image")
    Watcher(product, FolderSource(folder / "in", settle=0.0), folder / "out", poll=0.01).run(once=True)
    return folder / "out"


def test_a_shift_begins_at_its_time_or_the_day_before():
    shifts = parse_shifts("22:00, 06:00,14:00")
    assert shift_start(datetime(2026, 11, 27, 15, 0), shifts) == datetime(2026, 11, 27, 14, 0)
    assert shift_start(datetime(2026, 11, 27, 5, 59), shifts) == datetime(2026, 11, 26, 22, 0)
    for wrong in ("", "25:00", "6"):
        with pytest.raises(UsageError, match="--shifts"):
            parse_shifts(wrong)


def test_the_state_counts_the_shift_and_shows_the_rejects(line, tmp_path):
    state = line_state(line, SHIFTS, datetime.now())
    assert state["counts"] == {"ok": 3, "ng": 3, "error": 1}
    assert len(state["rejects"]) == 3
    assert all(one["overlay"] for one in state["rejects"])
    assert line_state(line, SHIFTS, datetime(2200, 1, 1))["counts"] == {"ok": 0, "ng": 0, "error": 0}
    with pytest.raises(ResultsError):
        line_state(tmp_path, SHIFTS, datetime.now())


def test_pictures_and_decisions_go_over_http_and_nothing_else(line):
    from starlette.testclient import TestClient

    client = TestClient(create_line_page(line, SHIFTS))
    state = client.get("/v1/line").json()
    assert (
        client.get(f"/v1/line/overlays/{state['rejects'][0]['overlay']}").headers["content-type"]
        == "image/png"
    )
    assert client.get("/v1/line/latest.png").status_code == 200
    for path in ("..%2fmanifest.json", "%2e%2e/manifest.json", "absent.png"):
        assert client.get(f"/v1/line/overlays/{path}").status_code == 404
    body = {"path": "absent.png", "decision": "accept"}
    assert client.post("/v1/line/reviews", json=body).status_code == 422
    foreign = client.post("/v1/line/reviews", json=body, headers={"origin": "https://example.com"})
    assert foreign.status_code == 403
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def _with_a_new_reject(state: dict) -> dict:
    return {**state, "rejects": [{**state["rejects"][0], "path": "new.png"}, *state["rejects"]]}


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None or sync_playwright is None, reason="needs Chromium and playwright")
def test_an_operator_sees_the_verdict_and_decides_by_key(line):
    port = free_port()
    server = HttpServer(create_line_page(line, SHIFTS), host="127.0.0.1", port=port)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#verdict")
            assert page.inner_text("#count-ng") == "3"
            assert page.inner_text("#count-ok") == "3"
            names = page.locator(".rejects li > b").all_inner_texts()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("a")
            page.wait_for_selector(".decision.accept")
            assert {path: one.decision for path, one in read_reviews(line).items()} == {names[1]: "accept"}
            page.keyboard.press("u")
            page.wait_for_selector(".decision.accept", state="detached")
            assert read_reviews(line) == {}
            # Another reject arrives: it comes first, and keys still act on the image that is marked.
            page.route(
                "**/v1/line",
                lambda route: route.fulfill(json=_with_a_new_reject(route.fetch().json())),
            )
            page.wait_for_selector(".rejects li:nth-child(4)")
            page.keyboard.press("r")
            page.wait_for_selector(".decision.reject")
            assert list(read_reviews(line)) == [names[1]]
            page.keyboard.press("u")
            page.wait_for_selector(".decision.reject", state="detached")
            page.unroute("**/v1/line")
            page.wait_for_selector(".rejects li:nth-child(4)", state="detached")
            page.fill(".rejects li:first-child input", "a reflection")
            page.press(".rejects li:first-child input", "Enter")
            page.wait_for_selector(".decision.reject")
            assert read_reviews(line)[names[0]].note == "a reflection"
            page.set_viewport_size({"width": 390, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        server.stop()
