"""Benchmark data on disk: test images, their labels and masks, and images for references.

anomalib's loaders list the published data sets, so that splits and labels equal those of other work. This module lists
custom folders, with fewer requirements. Nothing is downloaded and no image is opened: ``clipspect.data`` reads images,
so that a broken one becomes an error row.

"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspect.benchmark.folders import Layout, find_layout, has_layout, image_suffixes, list_folder
from clipspect.benchmark.samples import Category, Sample, check_category
from clipspect.errors import UsageError
from clipspect.prompts import object_words

GOOD = "good"


@dataclass(frozen=True)
class DataSet:
    """Data set that ``clipspect benchmark`` knows by name."""

    title: str
    expected: str
    """Expected content of --root, in one line."""
    source: str
    """Download location."""
    read: Callable[[Path, str], Any]
    """(root, category) → anomalib's data frame of samples."""
    marker: str = "{category}/test"
    """Path under the root that identifies a category."""
    objects: Callable[[str], str] = lambda category: category
    """Category name → object name for the prompts."""


def _mvtec(folder: Path) -> Any:
    from anomalib.data.datasets.image.mvtecad import make_mvtec_ad_dataset

    return make_mvtec_ad_dataset(folder, extensions=image_suffixes(folder))


def _mpdd(root: Path, category: str) -> Any:
    from anomalib.data.datasets.image.mpdd import make_mpdd_dataset

    return make_mpdd_dataset(root / category, extensions=image_suffixes(root / category))


def _btech(root: Path, category: str) -> Any:
    from anomalib.data.datasets.image.btech import make_btech_dataset

    return make_btech_dataset(root / category)


def _mvtec2(root: Path, category: str) -> Any:
    from anomalib.data.datasets.image.mvtecad2 import TestType, make_mvtec2_dataset

    return make_mvtec2_dataset(root / category, test_type=TestType.PUBLIC)


def _kolektor(root: Path, category: str) -> Any:
    from anomalib.data.datasets.image.kolektor import make_kolektor_dataset

    return make_kolektor_dataset(root)


def _real_iad(root: Path, category: str) -> Any:
    from anomalib.data.datasets.image.realiad import RealIADDataset

    there = [side for side in ("512", "1024", "raw", "256") if (root / f"realiad_{side}" / category).is_dir()]
    return RealIADDataset(root, category, resolution=there[0]).samples


def _visa(root: Path, category: str) -> Any:
    """List VisA from anomalib's split (``visa_pytorch``), or from the original download and its split table."""
    if (root / "visa_pytorch" / category).is_dir():
        return _mvtec(root / "visa_pytorch" / category)
    import pandas as pd

    table = pd.read_csv(root / "split_csv" / "1cls.csv", keep_default_na=False)
    rows = table[table["object"] == category]
    return pd.DataFrame(
        {
            "image_path": [str(root / path) for path in rows["image"]],
            "mask_path": [str(root / path) if path else "" for path in rows["mask"]],
            "label": rows["label"].replace({"normal": GOOD, "anomaly": "bad"}),
            "label_index": (rows["label"] != "normal").astype(int),
            "split": rows["split"],
        }
    )


DATASETS: dict[str, DataSet] = {
    "mvtecad": DataSet(
        "MVTec AD",
        "CATEGORY/train/good, CATEGORY/test/{good,DEFECT} and CATEGORY/ground_truth/DEFECT/*_mask.png",
        "www.mvtec.com/company/research/datasets/mvtec-ad (CC BY-NC-SA 4.0)",
        lambda root, category: _mvtec(root / category),
    ),
    "visa": DataSet(
        "VisA",
        "CATEGORY/Data with split_csv/1cls.csv as downloaded, or visa_pytorch/CATEGORY as anomalib splits it",
        "github.com/amazon-science/spot-diff (CC BY 4.0)",
        _visa,
        marker="{category}/Data",
    ),
    "btech": DataSet(
        "BTech (BTAD)",
        "01, 02 and 03, each with train/ok, test/{ok,ko} and ground_truth/ko",
        "github.com/pankajmishra000/VT-ADL (CC BY-NC-SA 4.0)",
        _btech,
        objects=lambda category: "product",
    ),
    "mpdd": DataSet(
        "MPDD",
        "CATEGORY/train/good, CATEGORY/test/{good,DEFECT} and CATEGORY/ground_truth/DEFECT",
        "github.com/stepanje/MPDD (CC BY-NC-SA 4.0)",
        _mpdd,
    ),
    "kolektor": DataSet(
        "Kolektor SDD",
        "kos01/Part0.jpg with kos01/Part0_label.bmp, kos02 …",
        "www.vicos.si/resources/kolektorsdd (CC BY-NC-SA 4.0)",
        _kolektor,
        marker="kos01",
        objects=lambda category: "electrical commutator",
    ),
    "realiad": DataSet(
        "Real-IAD",
        "realiad_512/CATEGORY (or _1024, _raw, _256) and realiad_jsons/realiad_jsons/CATEGORY.json",
        "realiad4ad.github.io/Real-IAD (on request)",
        _real_iad,
        marker="realiad_jsons/realiad_jsons/{category}.json",
    ),
    "mvtecad2": DataSet(
        "MVTec AD 2, its public test split",
        "CATEGORY/train/good and CATEGORY/test_public/{good,bad,ground_truth/bad}",
        "www.mvtec.com/company/research/datasets/mvtec-ad-2 (CC BY-NC-SA 4.0)",
        _mvtec2,
        marker="{category}/test_public",
    ),
}
FOLDER = "folder"
NAMES = (FOLDER, *DATASETS)


def load_categories(
    data: str,
    root: Path,
    categories: Sequence[str] = (),
    *,
    object: str | None = None,
    layout: Layout | None = None,
    as_is: bool = False,
) -> list[Category]:
    """Return the categories of a data set on disk.

    Args:
        data: one of :data:`NAMES`.
        root: folder of the data set.
        categories: the categories to use; default: all in the folder.
        object: name of the object in the images; default: each category's name.
        layout: layout of a custom folder, if its subfolders have nonstandard names.
        as_is: whether names are used as the official AnoCLIP code does: ``metal_nut``.

    Raises:
        UsageError: an unknown data set, a root without it, or a category that is missing or that anomalib cannot
            list. The message gives the expected layout and the download location.
    """
    if data not in NAMES:
        raise UsageError(f"unknown data set {data!r}; there are: {', '.join(NAMES)}")
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; --root names the folder of the data. {_advice(data)}")
    if data == FOLDER:
        return list(_folders(root, categories, object, layout, as_is))
    if layout is not None:
        raise UsageError("--normal, --abnormal, --masks and --references describe a --data folder")
    known = DATASETS[data]
    there = _categories_on_disk(data, root)
    if not there:
        raise UsageError(f"{root}: no {known.title} in this folder. {_advice(data)}")
    missing = [name for name in categories if name not in there]
    if missing:
        raise UsageError(
            f"{root}: no category {missing[0]!r}; there are: {', '.join(there)}. {_advice(data)}"
        )
    return [_read(data, root, name, object, as_is) for name in categories or there]


def _advice(data: str) -> str:
    if data == FOLDER:
        return "Expected a folder with good/ and folders of defects, or train/good, test/… and ground_truth/…"
    known = DATASETS[data]
    return f"Expected under --root: {known.expected}. Get {known.title} from {known.source}; nothing is downloaded."


def _categories_on_disk(data: str, root: Path) -> list[str]:
    marker = DATASETS[data].marker
    if "{category}" not in marker:
        return [data] if (root / marker).is_dir() else []
    if data == "visa" and (root / "visa_pytorch").is_dir():
        root, marker = root / "visa_pytorch", "{category}/test"
    before, _, after = marker.partition("{category}")
    found = (root / before).glob(f"*{after}") if after.startswith(".") else root.glob(f"*{after}")
    depth = len(Path(before).parts)
    names = {path.relative_to(root).parts[depth] for path in found}
    return sorted(name.removesuffix(after) if after.startswith(".") else name for name in names)


def _read(data: str, root: Path, name: str, object: str | None, as_is: bool) -> Category:
    known = DATASETS[data]
    try:
        table = known.read(root, name)
    except ImportError as error:
        raise UsageError(
            f"{known.title} is listed by anomalib, which is not installed here ({error.name}); install"
            " clipspect[benchmark], or describe the folder with --data folder"
        ) from error
    except Exception as error:  # anomalib raises its own, pandas and builtin errors for missing files
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{root}: anomalib cannot list {name!r} of {known.title} ({first}){_missing_masks(root / name)}."
            f" {_advice(data)}"
        ) from error
    samples, train = [], []
    for row in table.to_dict("records"):
        path, defective = Path(row["image_path"]), bool(row["label_index"])
        mask = Path(row["mask_path"]) if defective and row.get("mask_path") else None
        kind = str(row.get("label") or path.parent.name) if defective else GOOD
        if row["split"] == "test":
            samples.append(Sample(path, kind, defective, mask))
        elif row["split"] == "train" and not defective:
            train.append(path)
    words = object_words(object or known.objects(name), as_is=as_is)
    return check_category(
        Category(name, words, tuple(sorted(samples, key=lambda s: s.path)), tuple(sorted(train)))
    )


def _missing_masks(folder: Path) -> str:
    """Return a hint on images without a mask, the usual reason why anomalib rejects an MVTec AD layout."""
    if not has_layout(folder):
        return ""
    bare = [s.path for s in list_folder(find_layout(folder))[0] if s.defective and s.mask is None]
    if not bare:
        return ""
    return (
        f"; defective images without a mask: {len(bare)}, the first is {bare[0].relative_to(folder)}: add the masks,"
        f" or use --data folder --root {folder}, which excludes these images from the pixel metrics"
    )


def _folders(
    root: Path, wanted: Sequence[str], object: str | None, layout: Layout | None, as_is: bool
) -> Iterator[Category]:
    """List one product in a folder, or one in each of its subfolders."""
    if layout is not None or has_layout(root):
        if wanted:
            raise UsageError(f"{root}: is one product and has no categories; omit --categories")
        yield _folder(layout or find_layout(root), root, object, as_is)
        return
    there = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and has_layout(folder))
    missing = [name for name in wanted if name not in there]
    if missing or not there:
        what = f"no product {missing[0]!r}" if missing else "no product"
        raise UsageError(
            f"{root}: {what} found in it{f'; there are: {chr(44).join(there)}' if there else ''}. "
            f"{_advice(FOLDER)}, or name them with --normal, --abnormal, --masks, --references"
        )
    for name in wanted or there:
        yield _folder(find_layout(root / name), root / name, object, as_is)


def _folder(layout: Layout, root: Path, object: str | None, as_is: bool) -> Category:
    name = root.resolve().name
    samples, train, warnings = list_folder(layout)
    words = object_words(object or name, as_is=as_is)
    return check_category(Category(name, words, tuple(samples), tuple(train), tuple(warnings)))


def digest(category: Category) -> str:
    """Return a hash of the names and sizes of a category's images and masks."""
    states: list[Any] = [category.object]
    for sample in category.samples:
        states.append((sample.path.name, _size(sample.path), sample.kind, sample.defective))
        states.append((sample.mask.name, _size(sample.mask)) if sample.mask else None)
    states += [(path.name, _size(path)) for path in category.train]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
