"""Figures of a benchmark: anomaly maps and predicted masks with ground-truth contours. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.benchmark.masks import fit_mask, read_mask
from clipspect.benchmark.samples import Sample
from clipspect.data.decode import read_image
from clipspect.data.transforms import make_thumbnail
from clipspect.errors import ImageError, UsageError
from clipspect.postprocess.maps import resize_map

_SIDE = 256
_CELL = 1.7  # inches
_LABEL = 1.5  # inches
_TRUTH, _PREDICTION = "#00e05a", (0.92, 0.1, 0.1)
_OPACITY = 0.55


@dataclass(frozen=True)
class Panel:
    """One image of a figure."""

    number: int
    """Position among the examples."""
    name: str
    photo: NDArray[np.uint8]
    """(h, w, 3) thumbnail."""
    truth: NDArray[np.bool_]
    """(h, w) true mask."""


def pyplot() -> Any:
    """Return matplotlib's pyplot without a display. Raises UsageError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("figures need matplotlib; install clipspect[benchmark]") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_maps(
    path: Path,
    samples: Sequence[Sample],
    maps: Mapping[str, NDArray[np.floating]],
    labels: Sequence[str],
    title: str,
) -> None:
    """Draw anomaly maps over the images: a column per image, a row per method, the true contour in green.

    The maps of a row have one color range, that of all its images, which its bar shows (Dual-Image, figure 3).

    Args:
        path: PNG or PDF to write.
        samples: images with masks; unreadable ones are skipped.
        maps: "label|number of the image" → map (h, w).
        labels: the methods, in order.
        title: title of the figure.
    """
    panels, labels = _panels(samples), _known(labels, maps)
    if not panels or not labels:
        return
    figure, axes, bars = _grid(panels, labels, title)
    for line, label in zip(axes[1:], labels, strict=True):
        shown = {p.number: maps.get(f"{label}|{p.number}") for p in panels}
        values = np.concatenate([m.ravel() for m in shown.values() if m is not None]).astype(np.float32)
        low, high = float(values.min()), float(values.max())
        drawn = None
        for axis, panel in zip(line, panels, strict=True):
            grey = panel.photo.mean(2) / 255
            axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
            found = shown[panel.number]
            if found is not None:
                large = resize_map(found.astype(np.float32), *grey.shape)
                drawn = axis.imshow(large, vmin=low, vmax=high, cmap="inferno", alpha=_OPACITY)
            _contour(axis, panel)
        if drawn is not None:
            bars[label].set_axis_on()
            bar = figure.colorbar(drawn, cax=bars[label])
            bar.set_ticks([low, high], labels=[f"{low:.2f}", f"{high:.2f}"])
            bar.ax.tick_params(labelsize=7)
    _save(figure, path)


def draw_masks(
    path: Path,
    samples: Sequence[Sample],
    maps: Mapping[str, NDArray[np.floating]],
    labels: Sequence[str],
    title: str,
) -> None:
    """Draw predicted masks in red over the images, with the true contour in green (AnoCLIP, figure 4).

    A map is cut at the threshold with the highest F1 on its own image, as the figures of the official code are. The
    threshold needs the true mask, so the figure shows how well a map can be cut and not a verdict.

    Args:
        path: PNG or PDF to write.
        samples: images with masks; unreadable ones are skipped.
        maps: "label|number of the image" → map (h, w).
        labels: the methods, in order.
        title: title of the figure.
    """
    panels, labels = _panels(samples), _known(labels, maps)
    if not panels or not labels:
        return
    figure, axes, _ = _grid(panels, labels, f"{title}; red: predicted at each image's best F1, green: true")
    for line, label in zip(axes[1:], labels, strict=True):
        for axis, panel in zip(line, panels, strict=True):
            picture = np.repeat(panel.photo.mean(2, keepdims=True) / 255, 3, 2)
            found = maps.get(f"{label}|{panel.number}")
            if found is not None:
                scores = resize_map(found.astype(np.float32), *panel.truth.shape)
                predicted = scores >= best_threshold(scores, panel.truth)
                red = np.array(_PREDICTION)
                picture[predicted] = (1 - _OPACITY) * picture[predicted] + _OPACITY * red
            axis.imshow(picture)
            _contour(axis, panel)
    _save(figure, path)


def best_threshold(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Return the score from which on the F1 of (h, w) scores against a (h, w) mask is highest."""
    order = np.argsort(-scores.ravel(), kind="stable")
    ordered, hits = scores.ravel()[order], np.cumsum(truth.ravel()[order])
    ends = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are cut together
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + truth.sum())
    return float(ordered[int(np.argmax(np.where(ends, f1, -1)))])


def _panels(samples: Sequence[Sample]) -> list[Panel]:
    panels = []
    for number, sample in enumerate(samples):
        try:
            pixels, _ = read_image(sample.path)
            truth = (
                np.zeros(pixels.shape[:2], bool)
                if sample.mask is None
                else read_mask(sample.mask, *pixels.shape[:2]).pixels
            )
        except ImageError:
            continue
        photo = make_thumbnail(pixels, _SIDE)
        name = "\n".join(textwrap.wrap(f"{sample.kind} {sample.path.stem}", 20)[:2])
        panels.append(Panel(number, name, photo, fit_mask(truth, *photo.shape[:2])))
    return panels


def _known(labels: Sequence[str], maps: Mapping[str, Any]) -> list[str]:
    there = {key.rpartition("|")[0] for key in maps}
    return [label for label in labels if label in there]


def _grid(
    panels: Sequence[Panel], labels: Sequence[str], title: str
) -> tuple[Any, NDArray[Any], dict[str, Any]]:
    """Return a figure with a first row of images and a row per label: its axes, and a hidden one for each row's bar."""
    plt = pyplot()
    rows, columns = 1 + len(labels), len(panels)
    figure, cells = plt.subplots(
        rows, columns + 1, figsize=(_CELL * columns + _LABEL + 0.7, _CELL * rows + 0.8), squeeze=False,
        width_ratios=[*[1.0] * columns, 0.06], layout="constrained",
    )  # fmt: skip
    axes, last = cells[:, :-1], cells[:, -1]
    for axis in last:
        axis.set_axis_off()
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.imshow(panel.photo)
        _contour(axis, panel)
        axis.set_title(panel.name, fontsize=7)
    for line, label in zip(axes, ["image", *labels], strict=True):
        text = "\n".join(textwrap.wrap(label, 24, break_long_words=False))
        line[0].set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center", labelpad=6)
    width = int(14 * (_CELL * columns + _LABEL))
    figure.suptitle("\n".join(textwrap.wrap(title, width)), fontsize=9)
    return figure, axes, dict(zip(labels, last[1:], strict=True))


def _contour(axis: Any, panel: Panel) -> None:
    if panel.truth.any() and not panel.truth.all():
        axis.contour(panel.truth, levels=[0.5], colors=_TRUTH, linewidths=1.0)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)
