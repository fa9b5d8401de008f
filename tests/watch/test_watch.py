"""A watch judges each image once, whatever happens to the process, the disk, the folder and the targets."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipspect.data.decode import hash_file
from clipspect.errors import ResultsError
from clipspect.results.review import Review, add_reviews, reviewed_images
from clipspect.results.store import iterate_rows
from clipspect.watch.journal import ATTEMPTS, LONGEST_WAIT, Journal, Stamp, image_key
from clipspect.watch.sources import FolderSource
from clipspect.watch.targets import FileTarget, Mqtt, Webhook
from clipspect.watch.watcher import Watcher
from helpers.images import plate
from watch.conftest import receiver, save_plate

EVENT = {"path": "a.png", "file": "a.png", "verdict": "flagged", "content_hash": "0" * 64}


def watcher(product, source, out, targets=(), **options) -> Watcher:
    folder = source if not isinstance(source, Path) else FolderSource(source, settle=0.0)
    return Watcher(product, folder, out, targets, poll=0.01, **options)


def rows_of(out) -> list[dict]:
    return list(iterate_rows(out, ["path", "content_hash", "verdict", "profile", "error"]))


def test_each_image_is_judged_once(product, incoming, tmp_path):
    for number in range(5):
        save_plate(incoming / f"{number}.png", number, blot=number == 2)
    (incoming / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    first = watcher(product, incoming, out).run(once=True)
    assert first.images == 6
    again = watcher(product, incoming, out).run(once=True)
    assert again.images == 0
    found = rows_of(out)
    assert sorted(row["path"] for row in found) == sorted([*(f"{n}.png" for n in range(5)), "broken.png"])
    assert {row["profile"] for row in found} == {product.profile.label}
    assert next(row for row in found if row["path"] == "broken.png")["verdict"] == "error"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_an_empty_file_is_an_error_after_a_longer_time_and_ends_no_watch(product, incoming, tmp_path):
    (incoming / "empty.png").write_bytes(b"")
    os.mkfifo(incoming / "pipe.png")  # without a reader
    clock = [0.0]
    source = FolderSource(incoming, settle=2.0, clock=lambda: clock[0])
    for clock[0] in (0.0, 19.0):
        assert source.take(10, lambda stamp: False) == []
        assert not source.is_finished()
    clock[0] = 20.0
    assert [one.name for one in source.take(10, lambda stamp: False)] == ["empty.png"]
    assert source.is_finished()
    watcher(product, incoming, tmp_path / "out").run(once=True)
    ((path, verdict),) = [(row["path"], row["verdict"]) for row in rows_of(tmp_path / "out")]
    assert (path, verdict) == ("empty.png", "error")


def test_a_file_is_taken_when_it_is_complete(incoming):
    clock = [0.0]
    source = FolderSource(incoming, settle=2.0, clock=lambda: clock[0])

    def taken() -> list[str]:
        return [one.name for one in source.take(10, lambda stamp: False)]

    (incoming / "slow.png").write_bytes(b"half")
    (incoming / "x.png.part").write_bytes(b"half")
    (incoming / ".hidden.png").write_bytes(b"half")
    assert taken() == []
    assert not source.is_finished()
    clock[0] = 1.5
    (incoming / "slow.png").write_bytes(b"half and more")
    assert taken() == []
    clock[0] = 3.0
    assert taken() == []
    clock[0] = 3.6
    assert taken() == ["slow.png"]


def test_the_folder_may_disappear_and_return(product, incoming, tmp_path):
    source = FolderSource(incoming, settle=0.0)
    shutil.rmtree(incoming)
    assert source.take(10, lambda stamp: False) == []
    assert "No such file" in source.missing
    save_plate(incoming / "1.png", 1)
    source.take(10, lambda stamp: False)
    assert [one.name for one in source.take(10, lambda stamp: False)] == ["1.png"]
    assert not source.missing


def test_a_name_that_is_used_again_gets_its_own_row(product, incoming, tmp_path):
    out = tmp_path / "out"
    for number in range(3):
        save_plate(incoming / "latest.png", number)
        watcher(product, incoming, out).run(once=True)
    names = [row["path"] for row in rows_of(out)]
    assert names[0] == "latest.png"
    assert len(set(names)) == 3
    assert all(name.startswith("latest.png@") for name in names[1:])


def test_images_are_moved_once_and_a_copy_that_comes_again_too(product, incoming, tmp_path):
    out, sorted_to = tmp_path / "out", tmp_path / "sorted"
    target = FileTarget(sorted_to, incoming, moves=True)
    save_plate(incoming / "line 1" / "a.png", 1)
    (incoming / "broken.png").write_bytes(b"no image")
    watcher(product, incoming, out, [target]).run(once=True)
    assert [p.name for p in incoming.rglob("*") if p.is_file()] == []
    moved = [p.relative_to(sorted_to).as_posix() for p in sorted_to.rglob("*") if p.is_file()]
    assert sorted(moved)[0] == "error/broken.png"
    assert sorted(moved)[1] in ("ng/line 1/a.png", "ok/line 1/a.png")
    save_plate(incoming / "line 1" / "a.png", 1)
    counts = watcher(product, incoming, out, [target]).run(once=True)
    assert counts.images == 0
    assert counts.again == 1
    assert len(rows_of(out)) == 2
    assert not list(incoming.rglob("*.png"))
    save_plate(incoming / "line 1" / "a.png", 2)  # the same name, another image: nothing is overwritten
    watcher(product, incoming, out, [target]).run(once=True)
    assert len(list(sorted_to.rglob("a*.png"))) == 2


def test_accepted_images_that_were_moved_are_found_and_others_of_their_name_are_not(
    product, incoming, tmp_path
):
    out, sorted_to = tmp_path / "out", tmp_path / "sorted"
    target = FileTarget(sorted_to, incoming, moves=True)
    for number in (1, 2):
        save_plate(incoming / "a.png", number)
        watcher(product, incoming, out, [target]).run(once=True)
    save_plate(incoming / "a.png", 3)
    rows = rows_of(out)
    add_reviews(out, [Review(row["path"], "accept") for row in rows])
    found = reviewed_images(out)
    assert {hash_file(path) for path in found} == {row["content_hash"] for row in rows}
    assert all(path.is_relative_to(sorted_to) for path in found)
    shutil.rmtree(sorted_to)
    with pytest.raises(ResultsError, match="no longer in"):
        reviewed_images(out)


def test_an_image_that_any_method_flags_is_flagged(tmp_path):
    clean = {**error_row("a.png"), "error": None, "verdict": "clean", "flag": False}
    journal = Journal(tmp_path)
    journal.record("k", [clean, {**clean, "verdict": "flagged", "flag": True}], {})
    journal.record("l", [clean, clean], {})
    assert [one["verdict"] for one in journal.latest(2)] == ["clean", "flagged"]
    journal.close()


def test_a_webhook_is_signed_repeated_and_recognizable(product, incoming, tmp_path):
    save_plate(incoming / "a.png", 1)
    out = tmp_path / "out"
    with receiver((500, 503, 200)) as (url, got):
        hook = Webhook(url, b"secret")
        run = watcher(product, incoming, out, [hook])
        run.run(once=True)
        assert run.waiting() == {"waiting": 1}
        deadline = time.monotonic() + 60
        while run.waiting().get("done") != 1 and time.monotonic() < deadline:
            watcher(product, incoming, out, [hook]).run(once=True)
            time.sleep(0.2)
    assert len(got) == 3
    assert len({headers["Idempotency-Key"] for headers, _ in got}) == 1
    headers, body = got[-1]
    stamp, signature = (part.split("=")[1] for part in headers["Clipspect-Signature"].split(","))
    assert hmac.compare_digest(
        signature, hmac.new(b"secret", stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    )
    event = json.loads(body)
    assert event["id"] == headers["Idempotency-Key"]
    assert event["path"] == "a.png"
    assert event["profile"] == product.profile.label
    assert event["verdict"] in ("flagged", "clean")


def test_what_never_succeeds_is_given_up_and_kept(tmp_path):
    clock = [0.0]
    journal = Journal(tmp_path, lambda: clock[0])
    assert journal.record("k", [error_row("a.png")], {"webhook": EVENT})
    for _ in range(ATTEMPTS):
        clock[0] += LONGEST_WAIT
        action = journal.due("webhook")
        journal.failed(journal.start(action), "down")
    assert journal.counts() == {"given up": 1}
    [line] = (tmp_path / "dead-letters.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["event"]["path"] == "a.png"
    journal.close()


def error_row(path: str) -> dict:
    from clipspect.results.schema import COLUMNS

    values = {
        "path": path,
        "content_hash": "h",
        "error": "x",
        "verdict": "error",
        "regions": [],
        "warnings": [],
    }
    return {**dict.fromkeys(column.name for column in COLUMNS), **values}


def test_a_clock_that_is_set_back_delays_nothing_for_long(tmp_path):
    clock = [10_000.0]
    journal = Journal(tmp_path, lambda: clock[0])
    journal.record("k", [error_row("a.png")], {"webhook": EVENT})
    journal.failed(journal.start(journal.due("webhook")), "down")
    assert journal.due("webhook") is None
    clock[0] = 100.0  # two hours back
    assert journal.due("webhook") is not None
    journal.close()


def test_a_full_disk_stops_nothing_for_good(product, incoming, tmp_path, monkeypatch):
    for number in range(4):
        save_plate(incoming / f"{number}.png", number)
    faults = [ResultsError("disk full")] * 3
    record = Journal.record

    def failing(self, *arguments):
        if faults:
            raise faults.pop()
        return record(self, *arguments)

    monkeypatch.setattr(Journal, "record", failing)
    monkeypatch.setattr("clipspect.watch.watcher.RETRY_SECONDS", 0.01)
    said: list[str] = []
    counts = watcher(product, incoming, tmp_path / "out", say=said.append).run(once=True)
    assert counts.images == 4
    assert len(rows_of(tmp_path / "out")) == 4
    assert said == ["waiting: disk full"]


def test_another_profile_needs_another_folder(product, incoming, tmp_path):
    save_plate(incoming / "a.png", 1)
    watcher(product, incoming, tmp_path / "out").run(once=True)
    changed = type(product)(product.profile.with_threshold(0.7), product.detector, product.good)
    with pytest.raises(ResultsError, match="profile was"):
        watcher(changed, incoming, tmp_path / "out").run(once=True)


@pytest.mark.integration
def test_a_killed_watch_loses_and_doubles_nothing(profile, incoming, tmp_path):
    out, acted = tmp_path / "out", tmp_path / "acted.txt"
    script = tmp_path / "act.py"
    script.write_text(
        f"import sys, json; open({str(acted)!r}, 'a').write(json.load(sys.stdin)['id'] + '\\n')"
    )
    for number in range(40):
        save_plate(incoming / f"{number:02}.png", number)
    words = [sys.executable, "-c", "from clipspect.cli import main; main()", "watch", str(incoming),
             "--profile", str(profile), "--out", str(out),
             "--settle", "0", "--poll", "0.05", "--batch-size", "2", "--move-to", str(tmp_path / "sorted"),
             "--run", f"{sys.executable} {script}", "--no-report", "--json"]  # fmt: skip
    for lines in (3, 10):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):  # judged images are said one by one
            assert process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
    done = subprocess.run([*words, "--once"], capture_output=True, text=True, check=True)
    assert "actions wait" not in done.stderr
    names = Counter(row["path"] for row in rows_of(out))
    assert sorted(names) == [f"{number:02}.png" for number in range(40)]
    assert set(names.values()) == {1}
    assert not list(incoming.glob("*.png"))
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 40
    keys = Counter(acted.read_text(encoding="utf-8").split())
    assert (
        len(keys) == 40
    )  # each was told; one that was under way at a kill may be told twice, with the same key
    assert sum(keys.values()) <= 42


@pytest.mark.skipif(
    shutil.which("mosquitto") is None, reason="needs a Mosquitto broker (Debian's package mosquitto)"
)
@pytest.mark.integration
def test_mqtt_survives_a_broker_that_is_down(product, incoming, tmp_path):
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    save_plate(incoming / "a.png", 1)
    target = Mqtt(f"mqtt://127.0.0.1:{port}/line3")
    run = watcher(product, incoming, tmp_path / "out", [target])
    run.run(once=True)
    assert run.waiting() == {"waiting": 1}

    broker = subprocess.Popen([shutil.which("mosquitto"), "-p", str(port)], stderr=subprocess.DEVNULL)
    got: list[tuple[str, dict]] = []
    try:
        listener = Client(CallbackAPIVersion.VERSION2)
        listener.on_message = lambda _c, _u, message: got.append((message.topic, json.loads(message.payload)))
        listener.on_connect = lambda client, *_: client.subscribe("line3/#", qos=1)
        subscribed = threading.Event()
        listener.on_subscribe = lambda *_: subscribed.set()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                listener.connect("127.0.0.1", port)
                break
            except OSError:
                time.sleep(0.05)
        listener.loop_start()
        assert subscribed.wait(30)
        while not got and time.monotonic() < deadline:
            watcher(product, incoming, tmp_path / "out", [target]).run(once=True)
            time.sleep(0.1)
        listener.loop_stop()
    finally:
        broker.terminate()
        broker.wait()
    [(topic, event)] = got
    assert topic in ("line3/ok", "line3/ng")
    assert event["path"] == "a.png"
    assert event["id"] == image_key("a.png", event["content_hash"], product.profile.label)


def test_a_stamp_tells_a_changed_file(tmp_path):
    journal = Journal(tmp_path)
    journal.record("k", [error_row("a.png")], {}, Stamp("a.png", 3, 5))
    assert journal.is_judged(Stamp("a.png", 3, 5))
    assert not journal.is_judged(Stamp("a.png", 3, 6))
    journal.close()


def test_impossible_options_are_refused_before_the_model_is_loaded(run, profile, incoming, tmp_path):
    common = ["watch", str(incoming), "--profile", str(profile), "-o", str(tmp_path / "out")]
    for words, reason in (
        (["--move-to", "a", "--copy-to", "b"], "not both"),
        (["--webhook", "http://localhost:1"], "--webhook-secret-file"),
        (["--mqtt", "localhost"], "mqtt://host/topic"),
        (["--run", "no-such-program-here"], "no such program"),
    ):
        code, _, errors = run(*common, *words, model=False)
        assert code == 2
        assert reason in errors
    assert not (tmp_path / "out").exists()


def test_drift_is_told_once(product, incoming, tmp_path):
    for number in range(60):
        pixels = np.clip(plate(number, blot=True).astype(int) * 2 - 120, 0, 255).astype(np.uint8)
        cv2.imwrite(str(incoming / f"{number:02}.png"), pixels)
    said: list[str] = []
    many = type(product)(product.profile, product.detector, with_peaks(product, -30.0))
    with receiver() as (url, got):
        watcher(many, incoming, tmp_path / "out", [Webhook(url, b"s")], say=said.append).run(once=True)
    events = [json.loads(body) for _, body in got]
    [drift] = [event for event in events if event.get("event") == "drift"]
    assert drift["images"] == 50
    assert drift["profile"] == product.profile.label
    assert drift["stability_index"] > 0.25
    assert len([text for text in said if text.startswith("drift")]) == 1
    said.clear()
    watcher(product, incoming, tmp_path / "again", say=said.append).run(once=True)
    assert not said  # the profile has 8 good images: too few to tell


def with_peaks(product, shift: float):
    """The product's good images as if there were twenty, with other peaks."""
    from dataclasses import replace

    ((name, one),) = product.good.calibrations.items()
    peaks = tuple(shift + number / 10 for number in range(20))
    return replace(product.good, calibrations={name: replace(one, peaks=peaks)})
