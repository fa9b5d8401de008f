"""Outlines enclose exactly the cells they are of, holes filled."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, strategies
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from clipspect.postprocess.outline import outline_cells


def enclosed(polygons, shape) -> np.ndarray:
    """Cells whose center an odd number of borders lies left of, per polygon."""
    rows, columns = np.indices(shape)
    inside = np.zeros(shape, bool)
    for polygon in polygons:
        crossings = np.zeros(shape, int)
        for (x1, y1), (x2, y2) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            assert (x1 == x2) != (y1 == y2)  # along the grid
            if x1 == x2:
                crossings += (x1 <= columns) & (min(y1, y2) <= rows) & (rows < max(y1, y2))
        inside |= crossings % 2 == 1
    return inside


@given(arrays(bool, strategies.tuples(strategies.integers(1, 9), strategies.integers(1, 9))))
def test_outlines_enclose_the_cells_with_their_holes_filled(cells):
    polygons = outline_cells(cells)
    assert np.array_equal(enclosed(polygons, cells.shape), ndimage.binary_fill_holes(cells, np.ones((3, 3))))
    assert all(len(polygon) >= 4 for polygon in polygons)


def test_a_square_and_a_diagonal_pair():
    assert outline_cells(np.array([[1, 1], [1, 1]], bool)) == [[(0, 0), (2, 0), (2, 2), (0, 2)]]
    assert len(outline_cells(np.eye(2, dtype=bool))) == 2
    assert outline_cells(np.zeros((3, 3), bool)) == []


def test_masks_and_coco_outlines_of_a_run_show_the_same_regions(tmp_path, plates, run):
    from PIL import Image, ImageDraw

    out, coco = tmp_path / "out", tmp_path / "coco.json"
    options = ["--object", "plate", "-m", "anoclip", "--threshold", "0.4", "--masks", "--out", str(out)]
    code, _, errors = run("detect", str(plates), *options)
    assert code == 0, errors
    code, _, errors = run("results", "export", str(out), "--format", "coco", "-o", str(coco), model=False)
    assert code == 0, errors
    table = json.loads(coco.read_text(encoding="utf-8"))
    assert table["annotations"]
    for image in table["images"]:
        with Image.open(out / "masks" / f"{image['file_name']}.png") as opened:
            mask = np.asarray(opened)
        assert set(np.unique(mask)) <= {0, 255}
        drawn = Image.new("L", (image["width"], image["height"]))
        for one in table["annotations"]:
            if one["image_id"] == image["id"]:
                for polygon in one["segmentation"]:
                    ImageDraw.Draw(drawn).polygon([value - 0.5 for value in polygon], fill=255)
        differing = np.asarray(drawn) != mask
        assert differing.mean() < 0.05  # pixels that borders of cells cut through
        assert (mask > 0).any() == bool(image["flag"])
