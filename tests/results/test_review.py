"""Reviews are stored beside the detections, may be undone, and leave as lists, CSV and COCO."""

from __future__ import annotations

import csv
import json

import pytest

from clipspect.errors import ResultsError, UsageError
from clipspect.results.review import (
    REVIEWS,
    Review,
    add_reviews,
    parse_reviews,
    read_reviews,
    reviewed_images,
)


@pytest.fixture
def folder(tmp_path, plates, run):
    out = tmp_path / "out"
    code, _, errors = run(
        "detect", str(plates), "--object", "plate", "-m", "anoclip", "--threshold", "0.01", "-o", str(out)
    )
    assert code == 0, errors
    return out


def test_the_last_decision_counts_and_may_be_undone(folder):
    add_reviews(
        folder, [Review("a/plate 1.png", "reject", tags=("scratch",)), Review("a/plate 3.png", "accept")]
    )
    add_reviews(
        folder, [Review("a/plate 1.png", "accept", note="a reflection"), Review("a/plate 3.png", "undo")]
    )
    [(path, review)] = read_reviews(folder).items()
    assert (path, review.decision, review.note) == ("a/plate 1.png", "accept", "a reflection")
    assert review.content_hash
    with (folder / REVIEWS).open("a") as file:
        file.write('{"path": "a/plate 5.png", "deci')  # killed while it was written
    assert list(read_reviews(folder)) == ["a/plate 1.png"]
    add_reviews(folder, [Review("a/plate 5.png", "reject")])
    assert list(read_reviews(folder)) == ["a/plate 1.png", "a/plate 5.png"]


def test_reviews_of_other_images_are_refused(folder, tmp_path):
    for review in (Review("absent.png", "accept"), Review("a/plate 1.png", "accept", content_hash="0" * 64)):
        with pytest.raises(UsageError, match="nothing was added"):
            add_reviews(folder, [Review("a/plate 3.png", "accept"), review])
    assert read_reviews(folder) == {}
    with pytest.raises(UsageError, match="decision"):
        Review("a", "maybe")
    with pytest.raises(ResultsError):
        add_reviews(tmp_path, [])
    with pytest.raises(ResultsError, match="no reviewed images"):
        reviewed_images(folder)


def test_what_the_report_exports_is_imported_and_leaves_for_other_tools(folder, tmp_path, run):
    images = [{"name": "b/plate 0.png", "decision": "reject", "note": "ß, \"x\"", "tags": ["stain"]},
              {"name": "b/plate 2.png", "decision": "accept"}, {"name": "b/plate 4.png", "decision": None}]  # fmt: skip
    file = tmp_path / "review.json"
    file.write_text(json.dumps({"images": images}))
    code, said, errors = run("review", "import", str(folder), str(file), "--reviewer", "kim", model=False)
    assert code == 0, errors
    assert "2 decisions" in said

    def export(format: str, out):
        code, _, errors = run(
            "review", "export", str(folder), "--format", format, "-o", str(out), model=False
        )
        assert code == 0, errors
        return out

    with export("csv", tmp_path / "review.csv").open(encoding="utf-8-sig") as table:
        rows = {row["path"]: row for row in csv.DictReader(table)}
    assert rows["b/plate 0.png"]["note"] == 'ß, "x"'
    assert rows["b/plate 2.png"]["reviewer"] == "kim"
    lists = export("lists", tmp_path / "lists")
    assert (lists / "accepted.txt").read_text(encoding="utf-8") == "b/plate 2.png\n"
    assert (lists / "rejected.txt").read_text(encoding="utf-8") == "b/plate 0.png\n"
    coco = json.loads(export("coco", tmp_path / "coco.json").read_text(encoding="utf-8"))
    decisions = {one["file_name"]: one["decision"] for one in coco["images"]}
    assert decisions == {"b/plate 0.png": "reject", "b/plate 2.png": "accept"}
    [rejected] = [one["id"] for one in coco["images"] if one["decision"] == "reject"]
    assert coco["annotations"]
    assert {one["image_id"] for one in coco["annotations"]} == {rejected}
    code, said, errors = run("review", "show", str(folder), model=False)
    assert len(said.splitlines()) == 2
    assert "of 2 verdicts agree" in errors


def test_files_that_are_no_review_are_refused():
    for text in ("", "[]", "{}", '{"images": [{"name": 1}]}', '{"images": [{"name": "a", "decision": "x"}]}'):
        with pytest.raises(UsageError):
            parse_reviews(text)
