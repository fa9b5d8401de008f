"""Measure how a browser copes with the report of a large run: size, time to first paint, memory, scrolling, dragging.

python benchmarks/report_scale.py --images 10000

The rows are synthetic: a bundled photo of 256 pixels and a smooth random map of 96 × 96 cells per image.
One image in twenty has a peak in its map.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from clipspect.config import DetectorConfig
from clipspect.demo import DEMO_IMAGES
from clipspect.detection import Detection
from clipspect.postprocess.calibration import Calibration
from clipspect.results.report import write_report
from clipspect.results.rows import detection_to_row
from clipspect.results.run import preview_of
from clipspect.results.store import ResultStore

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-precise-memory-info")  # fmt: skip
CALIBRATION = Calibration("conformal", 0.0, -2.0, (0.0,), (1.0,), images=40, false_alarm_rate=0.05)
CELLS, PHOTO_SIDE = 96, 256
SCROLL = """async () => {
  const frames = [];
  let last = performance.now();
  const end = document.documentElement.scrollHeight;
  for (let at = 0; at < 120; at++) {
    scrollTo(0, end * at / 120);
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - last);
    last = performance.now();
  }
  frames.sort((a, b) => a - b);
  return {median: frames[60], p95: frames[114]};
}"""
DRAG = """async () => {
  const knob = document.getElementById("threshold"), times = [];
  for (let at = 0.3; at < 0.7; at += 0.02) {
    const start = performance.now();
    knob.value = at;
    knob.dispatchEvent(new Event("input", {bubbles: true}));
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  return times[Math.floor(times.length / 2)];
}"""


def detections(count: int) -> Iterator[Detection]:
    """Yield detections of smooth noise, some with a peak."""
    rng = np.random.default_rng(0)
    pixels = []
    for file in sorted(DEMO_IMAGES.glob("*.jpg")):
        with Image.open(file) as image:
            pixels.append(np.asarray(image.convert("RGB").resize((PHOTO_SIDE, PHOTO_SIDE))))
    ys, xs = np.mgrid[:CELLS, :CELLS]
    for number in range(count):
        noise = Image.fromarray(rng.normal(-2.4, 0.4, (16, 16)).astype(np.float32))
        layer = np.asarray(noise.resize((CELLS, CELLS), Image.Resampling.BILINEAR)).copy()
        if number % 20 == 0:
            y, x = rng.integers(10, CELLS - 10, 2)
            layer += 5 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 40)
        yield Detection(
            path=f"line {number % 8}/part-{number:05d}.png", content_hash=str(number), width=2048, height=2048,
            object="part", method="anoclip", model="synthetic", weights="none", raw_score=float(layer.max()),
            score_map=np.zeros((1, 1), np.float32), seconds=0.1, layers=layer[None].astype(np.float16),
            thumbnail=pixels[number % len(pixels)], calibration=CALIBRATION,
        )  # fmt: skip


def write_run(out: Path, count: int) -> Path:
    """Write a results folder and its report."""
    settings = {"methods": {"anoclip": {}}, "model": "synthetic", "weights": "none", "object": "part"}
    with ResultStore(out, settings, config=DetectorConfig().to_dict()) as store:
        for detection in detections(count):
            store.add(detection_to_row(detection, preview_of(detection), judged=True))
        store.update_manifest(calibrations={"anoclip": CALIBRATION.to_dict()})
    return write_report(out)


def memory_mb(profile: str) -> float:
    """Return the memory of the browser's processes (PSS: shared pages are counted once)."""
    total = 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and profile in (process / "cmdline").read_text(encoding="utf-8"):
                rollup = (process / "smaps_rollup").read_text(encoding="utf-8")
                total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total / 1024


def measure(report: Path, profile: Path) -> dict[str, Any]:
    """Open a report in Chromium and return the measurements."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on this machine")
    with sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            str(profile), executable_path=chromium, args=list(FLAGS), viewport={"width": 1280, "height": 900}
        )
        page = browser.new_page()
        started = perf_counter()
        page.goto(report.as_uri(), wait_until="commit", timeout=300_000)
        page.wait_for_selector("#counts", timeout=300_000)
        summary = perf_counter() - started
        page.evaluate("document.querySelector('#gallery').scrollIntoView()")
        page.wait_for_selector(".card canvas", timeout=300_000)
        cards = perf_counter() - started
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
        before = memory_mb(str(profile))
        scroll, drag = page.evaluate(SCROLL), page.evaluate(DRAG)
        found = {
            "first contentful paint, s": None if paint is None else round(paint / 1000, 2),
            "summary shown, s": round(summary, 2),
            "first card shown, s": round(cards, 2),
            "memory, MB": round(before),
            "memory after scrolling through all, MB": round(memory_mb(str(profile))),
            "JavaScript heap, MB": round(page.evaluate("performance.memory.usedJSHeapSize") / 2**20),
            "frame while scrolling, ms, median / 95 %": f"{scroll['median']:.0f} / {scroll['p95']:.0f}",
            "threshold step, ms, median": round(drag),
            "cards in the page": page.locator(".card").count(),
        }
        browser.close()
    return found


def main() -> None:
    """Write the report, measure it, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[10_000])
    arguments = parser.parse_args()
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            started = perf_counter()
            report = write_run(Path(folder) / "run", count)
            print(f"{count} images, written in {perf_counter() - started:.0f} s", file=sys.stderr)
            found = {"images": count, "report, MB": round(report.stat().st_size / 1e6, 1)}
            print(json.dumps({**found, **measure(report, Path(folder) / "profile")}, indent=1))


if __name__ == "__main__":
    main()
