"""What a person does on the page: give files, press, look."""

from __future__ import annotations

from pathlib import Path

from helpers.browser import wait_until
from server.conftest import photo

WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}


def good_images(folder: Path, count: int) -> list[Path]:
    """Files of images of plates without a blot."""
    paths = []
    for number in range(10, 10 + count):
        paths.append(folder / f"good {number}.png")
        paths[-1].write_bytes(photo(number, blot=False, size=(160, 160)))
    return paths


def give(page, where: str, paths, kind: str = "images") -> None:
    """Give files to a box and wait until it lists them."""
    before = page.locator(f"#{where} .chosen").all_inner_texts()
    files = [str(paths)] if isinstance(paths, Path) else [str(path) for path in paths]
    page.set_input_files(f"#{where} .pick-{kind}", files[0] if kind == "folder" else files)
    page.wait_for_selector(f"#{where} .chosen")
    if before:
        page.wait_for_timeout(200)


def press(page, button: str = "inspect") -> str:
    """Press a button and wait for the results; return the status line."""
    page.click(f"#{button}")
    wait_until(page, "/ in \\d+\\.\\d s\\./.test(document.querySelector('#status').innerText)")
    page.wait_for_selector(".single canvas, #gallery", state="attached")
    return page.inner_text("#status")


def inspect(page, paths, object_name: str = "plate") -> str:
    """Give images and an object, and press the button."""
    give(page, "images", paths)
    page.fill("#object", object_name)
    return press(page)


def show_gallery(page) -> None:
    """Scroll to the images: cards exist near the window only."""
    page.evaluate("document.querySelector('#gallery').scrollIntoView()")
    page.wait_for_selector(".card canvas")


def set_threshold(page, value: float) -> None:
    """Drag the threshold."""
    page.locator("#threshold").fill(f"{value:.3f}")
    page.wait_for_timeout(50)


def download(page, button: str, target: Path) -> Path:
    """Press a button that gives a file, and keep it as ``target``."""
    with page.expect_download() as got:
        page.click(f"#{button}")
    got.value.save_as(target)
    return target
