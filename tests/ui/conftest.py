"""The page over the small model, opened in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.browser import CHROMIUM, FLAGS
from helpers.page import WIDTHS
from server.conftest import free_port, photo

PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def page_engine(small_model, tmp_path_factory):
    from clipspect.server.engine import Engine

    return Engine((str(small_model),), references=tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def address(page_engine):
    from clipspect.server.limits import Limits
    from clipspect.ui.host import page_server

    port = free_port()
    with page_server(page_engine, Limits(images=14), host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

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

    def make(width: str = "desk", scheme: str = "light"):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda message: broken.append(message.text) if "Policy" in message.text else None)
        page.goto(address)
        page.wait_for_selector("#method")
        opened.append(page)
        return page

    yield make
    for page in opened:
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        page.close()
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not broken


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"plate {number}.png")
        paths[-1].write_bytes(photo(number, size=(160, 160)))
    return paths
