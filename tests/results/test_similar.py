"""Similar defects are shown together: what is stored of a region, how images are grouped, what the report shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipspect
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.detection import Detection
from clipspect.results import similar
from clipspect.results.report import write_report
from clipspect.results.rows import detection_to_row
from clipspect.results.run import run_folder
from clipspect.results.similar import group_rows, group_similar
from clipspect.results.store import iterate_rows
from clipspect.stitching import strongest_patches
from clipspect.training.demo_images import KNOWN_GOOD, as_pixels, render_image
from helpers.browser import new_page, wait_until

KINDS = ("scratch", "broken edge")
SEEDS = range(301, 307)


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_vectors_are_grouped_by_direction_and_numbered_by_size():
    small = [unit(0, 1, 0.1), unit(0.1, 1, 0)]
    large = [unit(1, 0, 0.1), unit(1, 0.1, 0), unit(1, 0.1, 0.1)]
    alone = unit(-1, -1, -1)
    assert list(group_similar(np.stack([small[0], *large, alone, small[1]]))) == [2, 1, 1, 1, 0, 2]
    assert list(group_similar(np.stack([alone]))) == [0]
    assert list(group_similar(np.zeros((0, 3), np.float32))) == []


def row(path: str, vector: np.ndarray | None, score: float = 0.9, **other) -> dict:
    data = None if vector is None else vector.astype("<f2").tobytes()
    return {
        "path": path, "method": "dark", "model": "tiny", "missing": False, "flag": True, "score": score,
        "embedding": data, **other,
    }  # fmt: skip


def test_only_flagged_images_with_an_embedding_are_grouped_up_to_the_limit(monkeypatch):
    one = unit(1, 0, 0)
    rows = [
        row("a", one),
        row("b", one, 0.8),
        row("c", one, 0.7),
        row("clean", one, flag=False),
        row("gone", one, missing=True),
        row("old", None),
        row("a", one, method="other"),
    ]
    assert group_rows(rows) == {("a", "dark"): 1, ("b", "dark"): 1, ("c", "dark"): 1, ("a", "other"): 0}
    monkeypatch.setattr(similar, "MAX_COMPARED", 2)
    assert group_rows(rows) == {("a", "dark"): 1, ("b", "dark"): 1, ("a", "other"): 0}


def test_embeddings_of_two_models_share_no_group():
    """A merged folder may hold rows of two models, with vectors of two lengths."""
    short, long = unit(1, 0, 0), unit(1, 0, 0, 0)
    rows = [row("a", long), row("b", short), row("c", long), row("d", short), row("e", short)]
    assert group_rows(rows) == {(path, "dark"): 1 + (path in "ac") for path in "abcde"}
    rows = [row("a", short), row("b", short), row("c", short, model="other")]
    assert group_rows(rows) == {("a", "dark"): 1, ("b", "dark"): 1, ("c", "dark"): 0}


def test_embeddings_without_a_direction_are_not_compared():
    one = unit(1, 0, 0)
    bad = [np.array([np.nan, 0, 1]), np.array([np.inf, 0, 0]), np.zeros(3)]
    rows = [row("a", one), row("b", one), *(row(f"bad {n}", vector) for n, vector in enumerate(bad))]
    assert group_rows(rows) == {("a", "dark"): 1, ("b", "dark"): 1}


def detection(layer: np.ndarray, height: int, width: int) -> Detection:
    return Detection(
        path="part", content_hash="", width=width, height=height, object="part", method="dark", model="", weights="",
        raw_score=1.0, score_map=np.zeros(layer.shape, np.float32), seconds=0.0, layers=layer[None].astype(np.float16),
    )  # fmt: skip


def test_the_strongest_patches_are_those_of_the_peak_inside_the_region_of_interest():
    reader = ImageLoader(ResizeSpec(64))
    image = reader.read(np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8))
    layer = np.full((24, 24), -3.0)
    layer[3:6, 18:21] = 5  # patch row 1, column 6 of 8 × 8
    layer[15:18, 6:9] = 9  # patch row 5, column 2
    tile, patches = strongest_patches(detection(layer, 40, 80), image, reader, (8, 8))
    assert (tile, patches.tolist()) == (0, [5 * 8 + 2])
    layer[12:] = -np.inf
    tile, patches = strongest_patches(detection(layer, 40, 80), image, reader, (8, 8))
    assert (tile, patches.tolist()) == (0, [1 * 8 + 6])


@pytest.mark.parametrize("aspect", ["squash", "pad"])
@pytest.mark.parametrize("tile", [None, 32, "square"])
def test_the_strongest_patch_shows_the_place_of_the_peak(aspect, tile):
    """A white dot is where the map has its peak: the tile's patches hold it, each at least a part of it."""
    reader = ImageLoader(ResizeSpec(64, aspect), tile)
    for top, left in ((4, 60), (30, 10), (20, 84)):
        pixels = np.zeros((40, 96, 3), np.uint8)
        pixels[top : top + 6, left : left + 6] = 255
        image = reader.read(pixels)
        layer = np.full((40, 96), -3.0)
        layer[top + 2 : top + 4, left + 2 : left + 4] = 9
        number, patches = strongest_patches(detection(layer, 40, 96), image, reader, (8, 8))
        means = image.pieces[number, ..., 0].reshape(8, 8, 8, 8).mean((1, 3)).reshape(-1)
        assert means[patches].max() == means.max()
        assert means[patches].min() > 10, "a patch without any of the dot"


def test_the_strongest_patches_of_many_tiles_are_found_without_visiting_all_of_them(monkeypatch):
    reader = ImageLoader(ResizeSpec(16), 16)
    image = reader.read(np.zeros((400, 400, 3), np.uint8))
    assert len(image.tiles) > 900
    visited = []
    places = ImageLoader.cell_places
    monkeypatch.setattr(ImageLoader, "cell_places", lambda *given: visited.append(given) or places(*given))
    layer = np.full((128, 128), -3.0)
    layer[64, 70] = 9
    number, _ = strongest_patches(detection(layer, 400, 400), image, reader, (4, 4))
    tile = image.tiles[number]
    assert tile.top <= 64.5 / 128 * 400 < tile.top + tile.height
    assert tile.left <= 70.5 / 128 * 400 < tile.left + tile.width
    assert len(visited) == 1


def test_a_peak_on_the_edge_of_two_tiles_belongs_to_the_second():
    reader = ImageLoader(ResizeSpec(64), "square")
    image = reader.read(np.zeros((64, 128, 3), np.uint8))
    assert len(image.tiles) == 2
    layer = np.full((9, 9), -3.0)
    layer[4, 4] = 9
    number, patches = strongest_patches(detection(layer, 64, 128), image, reader, (8, 8))
    assert (number, patches.tolist()) == (1, [4 * 8])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Six scratched, six broken and two good brackets, inspected by the shipped weights with known-good images."""
    folder = tmp_path_factory.mktemp("similar")
    (folder / "photos").mkdir()

    def draw(kind: str, seed: int) -> np.ndarray:
        return as_pixels(render_image(kind, seed)[0])

    for kind, seed in [(kind, seed) for kind in KINDS for seed in SEEDS] + [("good", 1), ("good", 2)]:
        Image.fromarray(draw(kind, seed)).save(folder / "photos" / f"{kind} {seed}.png")
    detector = clipspect.load("mutual")
    good = detector.calibrate([draw("good", seed) for seed in KNOWN_GOOD], "metal bracket")
    run_folder(detector, folder / "photos", object="metal bracket", out=folder / "out", good=good)
    return folder / "out"


def rows_of(report: Path) -> list[dict]:
    return json.loads(
        re.search(r'id="rows">(.*?)</script>', report.read_text(encoding="utf-8"), re.S).group(1)
    )


def test_different_kinds_of_defect_are_in_different_groups(run):
    rows = rows_of(run / "report.html")
    kinds = {group: Counter() for group in range(1, 13)}
    for one in rows:
        (finding,) = one["findings"]
        kind = one["name"].rpartition(" ")[0]
        assert (finding["similar"] is not None) == (finding["verdict"] == "flagged")
        if finding["similar"]:
            kinds[finding["similar"]][kind] += 1
    assert all(len(found) <= 1 for found in kinds.values()), "a group holds both kinds"
    assert {max(found[kind] for found in kinds.values()) >= 3 for kind in KINDS} == {True}


def test_a_folder_without_embeddings_has_a_report_without_groups(run, tmp_path):
    out = tmp_path / "old"
    (out / "detections").mkdir(parents=True)
    (out / "manifest.json").write_bytes((run / "manifest.json").read_bytes())
    for part in (run / "detections").iterdir():
        pq.write_table(pq.read_table(part).drop(["embedding"]), out / "detections" / part.name)
    assert all(one["embedding"] is None for one in iterate_rows(out))
    assert [one["findings"][0]["similar"] for one in rows_of(write_report(out))] == [None] * 14


def test_embeddings_have_unit_length_and_repeat(run):
    found = {one["path"]: one["embedding"] for one in iterate_rows(run)}
    for data in found.values():
        assert np.linalg.norm(np.frombuffer(data, "<f2").astype(float)) == pytest.approx(1, abs=2e-3)
    path = run.parent / "photos" / "scratch 301.png"
    detector = clipspect.load("anoclip")
    one, same = (detector.detect(path, "metal bracket") for _ in range(2))
    assert np.array_equal(one.embedding, same.embedding)
    assert detection_to_row(one, None)["embedding"] == one.embedding.tobytes()


def test_the_viewer_groups_similar_defects(run):
    with new_page(height=2400) as page:
        page.goto((run / "report.html").as_uri())
        page.wait_for_selector("#gallery", state="attached")
        page.select_option("#group", "similar")
        wait_until(page, "document.querySelectorAll('.group-title').length > 2")
        titles = page.locator(".group-title").all_inner_texts()
    first = sum(one["findings"][0]["similar"] == 1 for one in rows_of(run / "report.html"))
    assert titles[0] == f"Similar 1 · {first} images"
    assert "(no region) · 2 images" in titles
