"""The Chromium that tests drive, where there is one."""

from __future__ import annotations

import shutil
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


def wait_until(page: Any, condition: str, seconds: float = 60) -> None:
    """Poll a condition. Playwright's own wait evaluates strings in the page, which strict policies forbid."""
    for _ in range(int(20 * seconds)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within {seconds:g} s: {condition}")
