"""The notebooks of examples/ run from the first cell to the last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.integration

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
WRITTEN = {
    "1-first-heatmap": "crack-overlay.png",
    "2-product-profile": "bracket.clipspect",
    "3-benchmark-and-plots": "benchmark.png",
}


def test_every_notebook_is_known():
    assert {path.stem for path in NOTEBOOKS} == set(WRITTEN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_in_order(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), names)
            assert not cell.outputs, "outputs are not kept in the repository"
    assert (tmp_path / WRITTEN[path.stem]).is_file()
