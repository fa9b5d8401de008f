"""Reviews: what people say of images of a results folder, beside its detections.

OUT/reviews.jsonl    one line per decision; the last one of an image counts, and "undo" takes it back
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, get_args

from clipspect.data.decode import hash_file
from clipspect.errors import ImageError, ResultsError, UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.coco import CATEGORY, region_annotation
from clipspect.results.files import results_errors
from clipspect.results.rows import calibration_of, outlines_of
from clipspect.results.store import iterate_rows, read_manifest

REVIEWS = "reviews.jsonl"
Decision = Literal["accept", "reject", "undo"]
"""Accept: a good part. Reject: a defective one."""
MAX_NOTE = 2000
PLACE_NAMES = ("ok", "ng", "error")
"""Folders that `watch` sorts images into."""
_JUDGED_AGAIN = re.compile(r"@\d{8}T\d{6}\.\d{6}$")
"""End of the names of rows whose file's name was used before, by other content."""


@dataclass(frozen=True)
class Review:
    """A person's decision on one image."""

    path: str
    """As in the rows."""
    decision: Decision
    note: str = ""
    tags: tuple[str, ...] = ()
    content_hash: str = ""
    """Of the image that was looked at."""
    reviewer: str = ""
    time: str = ""
    """ISO 8601, UTC."""

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown decision, or a note that is too long."""
        if self.decision not in get_args(Decision):
            raise UsageError(f"decision {self.decision!r}; there are: {', '.join(get_args(Decision))}")
        if len(self.note) > MAX_NOTE:
            raise UsageError(f"{self.path}: a note has at most {MAX_NOTE} characters")


def add_reviews(folder: Path, reviews: Iterable[Review]) -> int:
    """Append reviews to a results folder; return how many.

    Raises:
        ResultsError: no results folder, or it cannot be written.
        UsageError: an image that is not in the folder, or that has changed since it was reviewed.
    """
    known = {
        row["path"]: row["content_hash"] for row in iterate_rows(_checked(folder), ["path", "content_hash"])
    }
    lines = []
    for one in reviews:
        if one.path not in known:
            raise UsageError(f"{one.path} is not in {folder}; nothing was added")
        if one.content_hash not in ("", known[one.path]):
            raise UsageError(f"{one.path} was scored again since it was reviewed; nothing was added")
        stamp = one.time or datetime.now(UTC).isoformat(timespec="seconds")
        entry = {**asdict(one), "content_hash": known[one.path], "time": stamp}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    with results_errors(folder / REVIEWS), (folder / REVIEWS).open("a", encoding="utf-8") as file:
        file.write("\n")  # ends a line that a killed process left incomplete
        file.writelines(lines)
    return len(lines)


def read_reviews(folder: Path) -> dict[str, Review]:
    """Path → the decision that counts. A line that a killed process left incomplete is skipped.

    Raises:
        ResultsError: no results folder.
    """
    found: dict[str, Review] = {}
    place = _checked(folder) / REVIEWS
    for line in place.read_text(encoding="utf-8").splitlines() if place.exists() else ():
        try:
            entry = json.loads(line)
            one = Review(**{**entry, "tags": tuple(entry.get("tags", ()))})
        except (ValueError, TypeError):
            continue
        if one.decision == "undo":
            found.pop(one.path, None)
        else:
            found[one.path] = one
    return found


def reviewed_images(folder: Path) -> dict[Path, str]:
    """File → "accept" or "reject" of the reviewed images of a results folder that are still there, unchanged.

    Images that `watch` has moved are found where it has moved them.

    Raises:
        ResultsError: no results folder, or none of its reviewed images is still in place.
    """
    manifest = read_manifest(folder)
    source, moved = Path(manifest["settings"].get("source", "")), manifest.get("moved_to")
    root = source if source.is_dir() else source.parent
    roots = [root, *(Path(moved) / place for place in PLACE_NAMES if moved)]
    found: dict[Path, str] = {}
    for one in read_reviews(folder).values():
        path = _find_file(roots, one)
        if path is not None:
            found[path] = one.decision
    if not found:
        raise ResultsError(
            f"{folder}: no reviewed images there, or their files are no longer in {moved or root} as they were judged"
        )
    return found


def _find_file(roots: Iterable[Path], review: Review) -> Path | None:
    """Return the file of a reviewed image: below one of the folders, with the content that was reviewed."""
    name = Path(_JUDGED_AGAIN.sub("", review.path))
    names = (name, name.with_stem(f"{name.stem}.{review.content_hash[:8]}"))
    for path in (root / one for root in roots for one in names):
        with suppress(ImageError):
            if path.is_file() and hash_file(path) == review.content_hash:
                return path
    return None


def parse_reviews(text: str) -> list[Review]:
    """Return the decisions of a review that the report exported as JSON. Raises UsageError."""
    try:
        return [
            Review(one["name"], one["decision"], one.get("note", ""), tuple(one.get("tags", ())))
            for one in json.loads(text)["images"]
            if one["decision"] is not None
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"not a review as the report exports it as JSON ({error})") from None


def reviewed_rows(folder: Path, method: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Yield rows of reviewed images, with the review's ``decision``, ``note``, ``reviewer`` and ``time``."""
    reviews = read_reviews(folder)
    wanted = method or next(iter(read_manifest(folder)["settings"]["methods"]))
    columns = [
        *(
            "path",
            "content_hash",
            "width",
            "height",
            "method",
            "object",
            "score",
            "flag",
            "verdict",
            "regions",
            "profile",
        ),
        *("layers", "map_height", "map_width", "class_logit"),
    ]
    for row in iterate_rows(folder, columns):
        review = reviews.get(row["path"])
        if review is not None and row["method"] == wanted:
            yield {**row, "decision": review.decision, "note": review.note, "tags": list(review.tags),
                   "reviewer": review.reviewer, "reviewed_at": review.time}  # fmt: skip


def _checked(folder: Path) -> Path:
    read_manifest(folder)
    return folder


def write_review_csv(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write reviewed rows as CSV; UTF-8 with a byte order mark, for spreadsheets."""
    names = [
        "path",
        "decision",
        "note",
        "tags",
        "reviewer",
        "reviewed_at",
        "verdict",
        "score",
        "profile",
        "content_hash",
    ]
    text = io.TextIOWrapper(file, "utf-8-sig", newline="", write_through=True)
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "tags": " ".join(row["tags"])})
    text.detach()


def write_review_coco(file: IO[bytes], folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write reviewed rows of a folder as COCO JSON: all images, and the regions of the rejected ones."""
    stored = read_manifest(folder)["calibrations"]
    calibrations = {key: Calibration.from_dict(one) for key, one in stored.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        names = ("width", "height", "decision", "note", "tags", "score", "verdict")
        images.append({"id": number, "file_name": row["path"], **{name: row[name] for name in names}})
        if row["decision"] != "reject":
            continue
        outlines = outlines_of(row, calibration_of(calibrations, row))
        for region, outline in zip(row["regions"] or [], outlines, strict=True):
            annotations.append(region_annotation(region, outline, len(annotations) + 1, number))
    table = {"info": {"description": "clipspect review"}, "licenses": [], "categories": [CATEGORY],
             "images": images, "annotations": annotations}  # fmt: skip
    file.write(json.dumps(table, ensure_ascii=False).encode())
