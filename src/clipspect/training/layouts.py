"""Write tiny data sets of rendered scenes in the layout of every benchmark data set, to test loaders offline.

python -m clipspect.training.layouts folder plates --category plate

"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.errors import UsageError
from clipspect.training.render import HELD_OUT, Canvas, draw_scenes

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Images of a tiny data set."""

    train: Sequence[Pixels]
    good: Sequence[Pixels]
    defective: Sequence[tuple[Pixels, Pixels]]
    """Images with their masks of 0 and 255."""


def render_pictures(
    *, side: int = 64, train: int = 3, good: int = 4, defective: int = 4, seed: int = 0
) -> Pictures:
    """Render scenes of kinds the tiny model was never trained on; every defect is visible."""
    clean: list[Pixels] = []
    marked: list[tuple[Pixels, Pixels]] = []
    canvas = Canvas(side, seed)
    while len(clean) < train + good or len(marked) < defective:
        scenes = draw_scenes(canvas, 8, HELD_OUT)
        for row in range(8):
            mask = scenes.mask[row].numpy()
            if mask.any() and len(marked) < defective:
                marked.append((_bytes(scenes.defective[row].permute(1, 2, 0).numpy()), _bytes(mask)))
            else:
                clean.append(_bytes(scenes.clean[row].permute(1, 2, 0).numpy()))
    return Pictures(clean[:train], clean[train : train + good], marked)


def _bytes(picture: NDArray[np.float32]) -> Pixels:
    return (picture * 255).round().astype(np.uint8)


def write_layout(name: str, root: Path, category: str, pictures: Pictures) -> None:
    """Write images below ``root`` as one category of a data set.

    Args:
        name: a key of :data:`LAYOUTS`: "mvtecad", "visa" (as downloaded), "visa-split" (as anomalib splits it),
            "btech", "mpdd", "kolektor", "realiad", "mvtecad2", "folder".
        root: folder of the data set; it may contain other categories.
        category: its name; "kolektor" has only one category and ignores it.
        pictures: its images.
    """
    if name not in LAYOUTS:
        raise UsageError(f"unknown layout {name!r}; there are: {', '.join(LAYOUTS)}")
    LAYOUTS[name](root, category, pictures)


def _save(path: Path, pixels: Pixels) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def _classic(
    folder: Path, pictures: Pictures, *, good: str = "good", bad: str = "scratch", mask: str = "_mask"
) -> None:
    """Write train/good, test/{good,DEFECT}, ground_truth/DEFECT: MVTec AD's layout, which most others follow."""
    for i, pixels in enumerate(pictures.train):
        _save(folder / "train" / good / f"{i:03d}.png", pixels)
    for i, pixels in enumerate(pictures.good):
        _save(folder / "test" / good / f"{i:03d}.png", pixels)
    for i, (pixels, truth) in enumerate(pictures.defective):
        _save(folder / "test" / bad / f"{i:03d}.png", pixels)
        _save(folder / "ground_truth" / bad / f"{i:03d}{mask}.png", truth)


def _visa(root: Path, category: str, pictures: Pictures) -> None:
    images, lines = root / category / "Data" / "Images", []
    for i, pixels in enumerate([*pictures.train, *pictures.good]):
        path = images / "Normal" / f"{i:04d}.JPG"
        _save(path, pixels)
        split = "train" if i < len(pictures.train) else "test"
        lines.append(f"{category},{split},normal,{path.relative_to(root)},")
    for i, (pixels, truth) in enumerate(pictures.defective):
        path, mask = images / "Anomaly" / f"{i:03d}.JPG", images.parent / "Masks" / "Anomaly" / f"{i:03d}.png"
        _save(path, pixels)
        _save(mask, truth // 255)  # VisA numbers its kinds of defects
        lines.append(f"{category},test,anomaly,{path.relative_to(root)},{mask.relative_to(root)}")
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(exist_ok=True)
    known = table.read_text(encoding="utf-8") if table.is_file() else "object,split,label,image,mask\n"
    table.write_text(known + "\n".join(lines) + "\n")


def _kolektor(root: Path, category: str, pictures: Pictures) -> None:
    """Write a label file per image, black if it is good; anomalib draws the split."""
    empty = np.zeros_like(pictures.defective[0][1])
    pairs = [*((pixels, empty) for pixels in [*pictures.train, *pictures.good]), *pictures.defective]
    for i, (pixels, truth) in enumerate(pairs):
        folder = root / f"kos{i // 4 + 1:02d}"
        _save(folder / f"Part{i % 4}.jpg", pixels)
        _save(folder / f"Part{i % 4}_label.bmp", truth)


def _real_iad(root: Path, category: str, pictures: Pictures) -> None:
    folder = root / "realiad_256" / category
    table: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}

    def add(split: str, kind: str, name: str, pixels: Pixels, truth: Pixels | None) -> None:
        image = f"{kind}/S0001/{name}.jpg" if kind == "OK" else f"NG/{kind}/S0001/{name}.jpg"
        mask = None if truth is None else image.replace(".jpg", "_mask.png")
        _save(folder / image, pixels)
        if truth is not None and mask is not None:
            _save(folder / mask, truth)
        table[split].append(
            {"category": category, "anomaly_class": kind, "image_path": image, "mask_path": mask}
        )

    for i, pixels in enumerate(pictures.train):
        add("train", "OK", f"{category}_{i:04d}_OK_C1", pixels, None)
    for i, pixels in enumerate(pictures.good, len(pictures.train)):
        add("test", "OK", f"{category}_{i:04d}_OK_C1", pixels, None)
    for i, (pixels, truth) in enumerate(pictures.defective):
        add("test", "HS", f"{category}_{i:04d}_NG_HS_C1", pixels, truth)
    path = root / "realiad_jsons" / "realiad_jsons" / f"{category}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


def _mvtec2(root: Path, category: str, pictures: Pictures) -> None:
    folder = root / category
    for i, pixels in enumerate(pictures.train):
        _save(folder / "train" / "good" / f"{i:03d}_regular.png", pixels)
    for i, pixels in enumerate(pictures.good):
        _save(folder / "test_public" / "good" / f"{i:03d}_regular.png", pixels)
    for i, (pixels, truth) in enumerate(pictures.defective):
        _save(folder / "test_public" / "bad" / f"{i:03d}_regular.png", pixels)
        _save(folder / "test_public" / "ground_truth" / "bad" / f"{i:03d}_regular_mask.png", truth)


def _folder(root: Path, category: str, pictures: Pictures) -> None:
    """Write a custom folder: good/, a folder per defect, masks/ of the same names, reference/."""
    for i, pixels in enumerate(pictures.train):
        _save(root / category / "reference" / f"{i:03d}.png", pixels)
    for i, pixels in enumerate(pictures.good):
        _save(root / category / "good" / f"{i:03d}.jpg", pixels)
    for i, (pixels, truth) in enumerate(pictures.defective):
        _save(root / category / "dent" / f"{i:03d}.jpg", pixels)
        _save(root / category / "masks" / "dent" / f"{i:03d}.png", truth)


LAYOUTS: dict[str, Callable[[Path, str, Pictures], None]] = {
    "mvtecad": lambda root, category, p: _classic(root / category, p),
    "visa": _visa,
    "visa-split": lambda root, category, p: _classic(root / "visa_pytorch" / category, p, bad="bad", mask=""),
    "btech": lambda root, category, p: _classic(root / category, p, good="ok", bad="ko", mask=""),
    "mpdd": lambda root, category, p: _classic(root / category, p, bad="hole"),
    "kolektor": _kolektor,
    "realiad": _real_iad,
    "mvtecad2": _mvtec2,
    "folder": _folder,
}
"""name → function that writes one category."""


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(
        prog="python -m clipspect.training.layouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("root", type=Path, help="folder to write into")
    parser.add_argument("--category", default="bottle")
    parser.add_argument(
        "--images", type=int, default=8, help="number of good test images, and of defective ones"
    )
    parser.add_argument("--side", type=int, default=128, help="in pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    count = given.images
    pictures = render_pictures(side=given.side, train=5, good=count, defective=count, seed=given.seed)
    write_layout(given.layout, given.root, given.category, pictures)


if __name__ == "__main__":
    main()
