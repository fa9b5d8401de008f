"""Second parity set: MuSc, few-shot methods, Dual-Image and V-V paths of deep and timm models.

``tests/fixtures/parity2/README.md`` defines every array and tolerance. No test depends on a grid, a width or a number
of images: a held-out set has the same names and other sizes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity2"


@pytest.fixture(scope="session")
def folder() -> Path:
    """The fixtures of the repository, or another set in the folder named by CLIPSPECT_PARITY2."""
    return Path(os.environ.get("CLIPSPECT_PARITY2", FIXTURES))


@pytest.fixture(scope="session")
def load_arrays(folder: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """``load_arrays("musc")``: the arrays of ``musc.npz`` by name."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz") as stored:
            return dict(stored)

    return load


@pytest.fixture(scope="session")
def close() -> Callable[[Any, Any, float], None]:
    """``close(actual, expected, atol)``: same shape, all finite, no value off by more than atol."""

    def check(actual: Any, expected: Any, atol: float) -> None:
        actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        assert actual.shape == expected.shape
        assert np.isfinite(actual).all()
        assert np.abs(actual - expected).max(initial=0) <= atol

    return check
