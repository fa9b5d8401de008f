"""Images by name from disks and object storage, whatever the storage does."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest

from clipspect.distributed import sources
from clipspect.distributed.sources import LocalFolder, ObjectStorage, open_source
from clipspect.errors import ImageError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images among what is none: hidden files, notes, overlays, results of an earlier run."""
    for name in (
        "b/2.JPG", "a 1.png", "notes.txt", ".hidden/3.png", "b/.4.png", "b/2.clipspect.png",
        "old/overlays/5.png", "old/manifest.json", "b/manifest.json",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({"kind": "clipspect results"}))
    return tmp_path


@pytest.fixture
def impatient(monkeypatch):
    """No waiting between attempts; how long it would have been."""
    waits: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_folder_and_storage_list_the_same_images_and_read_them(folder, scheme):
    if scheme == "local://":
        pytest.importorskip("fsspec")
    source = pickle.loads(pickle.dumps(open_source(f"{scheme}{folder}")))
    assert type(source) is (ObjectStorage if scheme else LocalFolder)
    assert source.names() == ["a 1.png", "b/2.JPG"]
    assert [source.read(name) for name in source.names()] == [b"a 1.png", b"b/2.JPG"]
    with pytest.raises(ImageError, match="no such"):
        source.read("c.png")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_nothing_to_score_is_wrong_usage(tmp_path, scheme):
    with pytest.raises(UsageError, match="no images"):
        open_source(f"{scheme}{tmp_path}").names()


def test_places_nobody_can_open_say_so():
    with pytest.raises(UsageError, match=r"^s3://…: cannot be opened"):
        open_source("s3://bucket/line?nonsense=1").names()
    with pytest.raises(UsageError, match=r"^nowhere://…: no reader of this scheme"):
        open_source("nowhere://bucket/prefix").names()


def test_no_password_is_in_what_results_keep_or_errors_say():
    source = open_source("s3://key:secret@bucket/line 1?region=us-east-1")
    assert source.location == "s3://bucket/line 1"
    with pytest.raises(UsageError) as caught:
        open_source("s3://key:secret@bucket/line?nonsense=1").names()
    assert "secret" not in str(caught.value)


def test_errors_that_pass_are_waited_out_and_others_are_not(folder, impatient, monkeypatch):
    source = ObjectStorage(f"file://{folder}")
    system, prefix = source._opened
    answers: list[Exception] = [OSError("503 Slow Down"), OSError("timeout")]

    class Flaky:
        def open_input_file(self, path: str):
            if answers:
                raise answers.pop(0)
            return system.open_input_file(path)

    source.__dict__["_opened"] = (Flaky(), prefix)
    assert source.read("a 1.png") == b"a 1.png"
    assert len(impatient) == 2
    assert impatient[0] < impatient[1]
    answers[:] = [PermissionError("no")] * 2
    with pytest.raises(ImageError, match="cannot be read from"):
        source.read("a 1.png")
    assert len(answers) == 1
    answers[:] = [OSError("gone")] * sources.ATTEMPTS
    with pytest.raises(ImageError, match="gone"):
        source.read("a 1.png")
    assert answers == []


@pytest.mark.integration
def test_an_s3_server_that_answers_503_and_stalls_loses_nothing(monkeypatch):
    pytest.importorskip("moto", reason="moto, an S3 server for tests, is not installed")
    pytest.importorskip("boto3")
    from pyarrow import fs

    from helpers.faulty_s3 import faulty_s3

    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with faulty_s3("photos") as (faults, tail):
        s3, _ = fs.FileSystem.from_uri(f"s3://photos{tail}")
        for number in range(3):
            with s3.open_output_stream(f"photos/line 1/{number}.png") as file:
                file.write(bytes([number]) * 1000)
        source = open_source(f"s3://photos/line 1{tail}")
        assert source.names() == ["0.png", "1.png", "2.png"]
        assert [source.read(name) for name in source.names()] == [bytes([n]) * 1000 for n in range(3)]
        assert sorted(faults.seen.values()) == [1, 2, faults.errors + 1]
