"""Objects by image: a CSV table with the columns ``image`` and ``object``, for folders with several products."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from clipspect.errors import UsageError


@dataclass(frozen=True)
class ObjectTable:
    """The object on each image of a folder."""

    by_image: tuple[tuple[str, str], ...]
    """(path below the folder, object), in the order of the table."""

    @cached_property
    def _lookup(self) -> dict[str, str]:
        return dict(self.by_image)

    @property
    def objects(self) -> list[str]:
        """The distinct objects, sorted."""
        return sorted({object for _, object in self.by_image})

    @property
    def digest(self) -> str:
        """Hash of the table."""
        return hashlib.sha256(json.dumps(sorted(self.by_image)).encode()).hexdigest()[:16]

    def object_of(self, image: str) -> str:
        """The object on an image by its path below the folder, without a page number."""
        return self._lookup[image.partition("#")[0]]

    def check(self, images: Sequence[str], table: Path) -> None:
        """Raise UsageError unless the table and a folder's images are the same."""
        there = {image.partition("#")[0] for image in images}
        for missing, what in (
            (sorted(there - self._lookup.keys()), "not in the table"),
            (sorted(self._lookup.keys() - there), "in the table and not in the folder"),
        ):
            if missing:
                count = "1 image is" if len(missing) == 1 else f"{len(missing)} images are"
                raise UsageError(
                    f"{table}: {count} {what}: {missing[0]}" + (" …" if len(missing) > 1 else "")
                )


def read_objects(table: Path) -> ObjectTable:
    """Read a table of objects.

    Raises:
        UsageError: it cannot be read, has other columns, no rows, an empty cell, or an image twice with two objects.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table}: cannot be read ({error})") from None
    if not rows or not {"image", "object"} <= set(rows[0]):
        raise UsageError(f"{table}: needs the columns image and object, and a row per image")
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        image, object = (str(row[name] or "").strip() for name in ("image", "object"))
        if not image or not object:
            raise UsageError(f"{table}, line {number}: image or object is empty")
        image = PurePosixPath(image.replace("\\", "/")).as_posix()
        if found.setdefault(image, object) != object:
            raise UsageError(
                f"{table}, line {number}: {image} has two objects, {found[image]!r} and {object!r}"
            )
    return ObjectTable(tuple(found.items()))
