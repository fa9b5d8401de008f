"""Figures of a benchmark: anomaly maps with ground-truth contours, and metrics against a setting. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.benchmark.masks import fit_mask, read_mask
from clipspect.benchmark.rows import Row, mean_rows
from clipspect.benchmark.samples import Sample
from clipspect.data.decode import read_image
from clipspect.data.transforms import make_thumbnail
from clipspect.errors import ImageError, UsageError
from clipspect.postprocess.maps import resize_map

_SIDE = 256
_PANELS = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("aupro", "AUPRO"))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("figures need matplotlib; install clipspect[benchmark]") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_grid(
    path: Path,
    samples: Sequence[Sample],
    maps: Mapping[str, NDArray[np.floating]],
    labels: Sequence[str],
    title: str,
) -> None:
    """Draw one row per image: the image, then each method's map, all with the ground-truth contour.

    Each method has one color range, over all images shown.

    Args:
        path: PNG or PDF to write.
        samples: images with masks; unreadable ones are skipped.
        maps: "label|number of the image" → map (h, w).
        labels: the methods, in order.
        title: title of the figure.
    """
    plt = _pyplot()
    shown = [(number, *_image_panel(sample)) for number, sample in enumerate(samples) if _readable(sample)]
    if not shown:
        return
    known = {label: [m for key, m in maps.items() if key.rpartition("|")[0] == label] for label in labels}
    labels = [label for label in labels if known[label]]
    figure, axes = plt.subplots(
        len(shown), 1 + len(labels), figsize=(2.1 * (1 + len(labels)), 2.1 * len(shown) + 0.4), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for line, (number, photo, mask) in zip(axes, shown, strict=True):
        for axis, label in zip(line, ["", *labels], strict=True):
            axis.set_axis_off()
            axis.imshow(photo)
            height, width = photo.shape[:2]
            found = maps.get(f"{label}|{number}")
            if found is not None:
                low, high = (float(f([getattr(m, f.__name__)() for m in known[label]])) for f in (min, max))
                axis.imshow(
                    resize_map(found.astype(np.float32), height, width), vmin=low, vmax=high, cmap="inferno"
                )
            axis.contour(mask, levels=[0.5], colors="#00ff66", linewidths=1.0)
        line[0].set_title(samples[number].kind, fontsize=8)
    for axis, label in zip(axes[0][1:], labels, strict=True):
        axis.set_title(label, fontsize=8)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _readable(sample: Sample) -> bool:
    try:
        _image_panel(sample)
    except ImageError:
        return False
    return True


def _image_panel(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    pixels, _ = read_image(sample.path)
    photo = make_thumbnail(pixels, _SIDE)
    mask = (
        np.zeros(pixels.shape[:2], bool)
        if sample.mask is None
        else read_mask(sample.mask, *pixels.shape[:2]).pixels
    )
    return photo, fit_mask(mask, *photo.shape[:2])


def draw_sweep(path: Path, rows: Sequence[Row], setting: str) -> None:
    """Plot image AUROC, pixel AUROC and AUPRO against a setting with several values.

    Points are means over categories; bars are standard deviations over seeds.

    Raises:
        UsageError: no method has results for two values of the setting.
    """
    plt = _pyplot()
    lines: dict[str, list[Row]] = {}
    for row in mean_rows(rows):
        if setting in row.settings:
            others = [f"{k}={v}" for k, v in row.settings.items() if k != setting]
            lines.setdefault(" ".join([row.method, *others, row.model, row.weights]), []).append(row)
    lines = {name: own for name, own in lines.items() if len(own) > 1}
    if not lines:
        raise UsageError(
            f"no method has results for two values of {setting}; sweep it: --sweep {setting}=1,2,4"
        )
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(11, 3.4), layout="constrained")
    for axis, (metric, head) in zip(axes, _PANELS, strict=True):
        for name, own in lines.items():
            points = [(row.settings[setting], row.values[metric], row.deviations[metric]) for row in own]
            defined = [(x, y, e or 0.0) for x, y, e in points if y is not None]
            if defined:
                x, y, spread = zip(*defined, strict=True)
                axis.errorbar([str(v) for v in x], y, yerr=spread, marker="o", capsize=2, label=name)
        axis.set_xlabel(setting.replace("_", " "))
        axis.set_title(head, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
