"""Outlines of regions: the borders of their cells as polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]


def outline_cells(cells: NDArray[np.bool_]) -> list[list[Point]]:
    """Trace the outer borders of the set cells.

    Args:
        cells: (h, w).

    Returns:
        Polygons of corners (x, y) in cells, clockwise as seen on the image, without points on straight lines. Parts
        that touch by a corner alone are separate polygons. Holes are left out, so that they count as filled.
    """
    after = _border_steps(cells)
    polygons = []
    while after:
        start = min(after)
        polygon, point, step = [start], start, (0, 0)
        while True:
            choices = after[point]
            # where two parts meet at a corner, a right turn stays with the part
            turn = (-step[1], step[0])
            step = turn if turn in choices else choices[0]
            choices.remove(step)
            if not choices:
                del after[point]
            point = (point[0] + step[0], point[1] + step[1])
            if point == start:
                break
            polygon.append(point)
        if _signed_area(polygon) > 0:
            polygons.append(_corners(polygon))
    return polygons


def _border_steps(cells: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Corner → steps (dx, dy) along the borders, with the set cells on the right hand."""
    padded = np.pad(cells, 1)
    inner = padded[1:-1, 1:-1]
    sides: tuple[tuple[Any, Point, Point], ...] = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above: to the right along the top
        (padded[1:-1, 2:], (1, 0), (0, 1)),  # right of it: down
        (padded[2:, 1:-1], (1, 1), (-1, 0)),  # below: to the left
        (padded[1:-1, :-2], (0, 1), (0, -1)),  # left of it: up
    )
    steps: dict[Point, list[Point]] = {}
    for neighbor, (x, y), step in sides:
        for row, column in np.argwhere(inner & ~neighbor).tolist():
            steps.setdefault((column + x, row + y), []).append(step)
    return steps


def _signed_area(polygon: list[Point]) -> float:
    """Positive for clockwise polygons in image coordinates (y downwards)."""
    x, y = np.array(polygon).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _corners(polygon: list[Point]) -> list[Point]:
    """The polygon without points on straight lines."""
    count = len(polygon)
    return [
        point
        for number, point in enumerate(polygon)
        if not (
            polygon[number - 1][0] == point[0] == polygon[(number + 1) % count][0]
            or polygon[number - 1][1] == point[1] == polygon[(number + 1) % count][1]
        )
    ]
