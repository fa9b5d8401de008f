"""Faults of a watch: a kill within each kind of action, a full disk, a clock that jumps, a folder that is gone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipspect.errors import ResultsError
from clipspect.results.schema import COLUMNS
from clipspect.results.store import iterate_rows
from clipspect.watch.journal import ATTEMPTS, Journal
from clipspect.watch.sources import FolderSource
from clipspect.watch.targets import Command, DeliveryError, FileTarget, Mqtt, Target, Webhook
from clipspect.watch.watcher import Watcher
from watch.conftest import receiver, save_plate

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
DELIVER = """
import os, shutil, signal, sys
from pathlib import Path, PosixPath
from clipspect.watch.journal import Journal
from clipspect.watch.targets import Command, FileTarget, Mqtt, Webhook
from clipspect.watch.watcher import Watcher

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half(read, written):
    written.write(read.read(100))
    written.flush()
    die()

{fault}
out = Path({out!r})
target = {target}
Watcher(None, None, out)._deliver_due(Journal(out), {{target.name: target}})
"""


def row(path: str, content_hash: str) -> dict:
    values = {"path": path, "content_hash": content_hash, "verdict": "flagged", "regions": [], "warnings": []}
    return {**dict.fromkeys(column.name for column in COLUMNS), **values}


@pytest.fixture
def judged(tmp_path):
    """A function that records an image as judged, with an action for a target that waits."""
    path = save_plate(tmp_path / "incoming" / "a.png", 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    event = {"path": "a.png", "file": "a.png", "verdict": "flagged", "content_hash": digest}

    def record(target: str) -> None:
        journal = Journal(tmp_path)
        journal.record("key", [row("a.png", digest)], {target: event})
        journal.close()

    return record


def deliver_and_die(out: Path, target: Target, fault: str) -> None:
    """Deliver what is due in another process, which a fault kills."""
    script = DELIVER.format(fault=fault, target=target, out=str(out))
    code = subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode
    assert code == -signal.SIGKILL


def deliver(out: Path, target: Target) -> bool:
    """Deliver what is due; return whether there was an action."""
    journal = Journal(out)
    try:
        return Watcher(None, None, out)._deliver_due(journal, {target.name: target})
    finally:
        journal.close()


def counts(out: Path) -> dict[str, int]:
    journal = Journal(out)
    try:
        return journal.counts()
    finally:
        journal.close()


@needs_kill
@pytest.mark.integration
@pytest.mark.parametrize(
    ("moves", "fault"),
    [(True, "shutil.copyfileobj = half"), (True, "Path.unlink = die"), (True, "Journal.succeeded = die"),
     (False, "Path.replace = die"), (False, "Journal.succeeded = die")],
)  # fmt: skip
def test_a_kill_while_a_file_is_moved_or_copied(judged, tmp_path, moves, fault):
    judged("files")
    aim, source = tmp_path / "sorted", tmp_path / "incoming"
    before = (source / "a.png").read_bytes()
    target = FileTarget(aim, source, moves=moves)
    deliver_and_die(tmp_path, target, fault)
    assert [deliver(tmp_path, target) for _ in range(2)] == [True, False]
    assert counts(tmp_path) == {"done": 1}
    assert [path.relative_to(aim).as_posix() for path in aim.rglob("*") if path.is_file()] == ["ng/a.png"]
    assert (aim / "ng" / "a.png").read_bytes() == before
    assert (source / "a.png").exists() != moves


@needs_kill
@pytest.mark.integration
@pytest.mark.parametrize(("fault", "sent"), [("Webhook.send = die", 1), ("Journal.succeeded = die", 2)])
def test_a_kill_while_a_webhook_is_called(judged, tmp_path, fault, sent):
    judged("webhook")
    with receiver() as (url, got):
        target = Webhook(url, b"s")
        deliver_and_die(tmp_path, target, fault)
        assert [deliver(tmp_path, target) for _ in range(2)] == [True, False]
    assert counts(tmp_path) == {"done": 1}
    assert [headers["Idempotency-Key"] for headers, _ in got] == ["key"] * sent
    assert len({body for _, body in got}) == 1


@needs_kill
@pytest.mark.integration
def test_a_program_that_kills_the_watch_is_run_again_with_the_same_key(judged, tmp_path):
    judged("command")
    seen, script = tmp_path / "seen.txt", tmp_path / "act.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        f"seen = pathlib.Path({str(seen)!r})\n"
        "is_first = not seen.exists()\n"
        "seen.open('a').write(json.load(sys.stdin)['id'] + '\\n')\n"
        f"is_first and os.kill(os.getppid(), {int(signal.SIGKILL)})\n"
    )
    target = Command(f"{sys.executable} {script}")
    deliver_and_die(tmp_path, target, "")
    assert [deliver(tmp_path, target) for _ in range(2)] == [True, False]
    assert seen.read_text(encoding="utf-8").split() == ["key", "key"]
    assert counts(tmp_path) == {"done": 1}


@contextmanager
def broker(port: int = 0):
    """A Mosquitto broker; gives its port."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    process = subprocess.Popen(["mosquitto", "-p", str(port)], stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers)
        yield port
    finally:
        process.terminate()
        process.wait()


@needs_kill
@pytest.mark.integration
@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs Mosquitto (Debian's package mosquitto)")
@pytest.mark.parametrize(("fault", "sent"), [("Mqtt._connected = die", 1), ("Journal.succeeded = die", 2)])
def test_a_kill_while_a_broker_is_told(judged, tmp_path, fault, sent):
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    judged("mqtt")
    got: list[dict] = []
    with broker() as port:
        listener, subscribed = Client(CallbackAPIVersion.VERSION2), threading.Event()
        listener.on_message = lambda _c, _u, message: got.append(json.loads(message.payload))
        listener.on_connect = lambda client, *_: client.subscribe("line/ng", qos=1)
        listener.on_subscribe = lambda *_: subscribed.set()
        listener.connect("127.0.0.1", port)
        listener.loop_start()
        assert subscribed.wait(30)
        target = Mqtt(f"mqtt://127.0.0.1:{port}/line")
        deliver_and_die(tmp_path, target, fault)
        assert [deliver(tmp_path, target) for _ in range(2)] == [True, False]
        wait_for(lambda: len(got) == sent)
        listener.loop_stop()
    assert [event["id"] for event in got] == ["key"] * sent
    assert counts(tmp_path) == {"done": 1}


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs Mosquitto (Debian's package mosquitto)")
def test_a_broker_that_comes_back_is_told_once_by_one_client():
    event = {"path": "a.png", "verdict": "flagged"}
    before = threading.active_count()
    with broker() as port:
        target = Mqtt(f"mqtt://127.0.0.1:{port}/line")
        target.send("first", event)
    for _ in range(2):
        with pytest.raises(DeliveryError):
            target.send("second", event)
    assert threading.active_count() == before
    with broker(port):
        target.send("second", event)
        assert threading.active_count() == before + 1
        target._drop()


def test_while_the_journal_cannot_be_written_nothing_is_sent(judged, tmp_path, monkeypatch):
    judged("webhook")
    monkeypatch.setattr("clipspect.watch.watcher.RETRY_SECONDS", 0.01)
    write, said = Journal._set_state, []

    def full(*_, **__):
        raise ResultsError("disk full")

    journal = Journal(tmp_path)
    with receiver() as (url, got):
        watcher, queue = Watcher(None, None, tmp_path, say=said.append), {"webhook": Webhook(url, b"s")}
        monkeypatch.setattr(Journal, "_set_state", full)
        for _ in range(3):
            watcher._deliver_due(journal, queue)
        assert not got
        assert said == ["waiting: disk full"]
        monkeypatch.setattr(Journal, "_set_state", write)
        watcher._deliver_due(journal, queue)
        assert not watcher._deliver_due(journal, queue)
    journal.close()
    assert len(got) == 1
    assert counts(tmp_path) == {"done": 1}


def test_a_webhook_that_is_down_delays_no_other_target(product, incoming, tmp_path, monkeypatch):
    never = threading.Event()

    def hang(*_):
        never.wait(30)
        raise DeliveryError("down")

    monkeypatch.setattr(Webhook, "send", hang)
    for number in range(3):
        save_plate(incoming / f"{number}.png", number)
    targets = [Webhook("http://127.0.0.1:1/", b"s"), FileTarget(tmp_path / "sorted", incoming, moves=True)]
    watcher = Watcher(product, FolderSource(incoming, settle=0.0), tmp_path / "out", targets, poll=0.01)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        wait_for(lambda: not list(incoming.glob("*.png")))
    finally:
        watcher.stop.set()
        never.set()
        thread.join()
    assert len(list((tmp_path / "sorted").rglob("?.png"))) == 3


def test_actions_of_a_target_that_is_gone_delay_no_other(tmp_path):
    journal = Journal(tmp_path)
    for number in range(40):
        journal.record(f"{number}", [row(f"{number}.png", "h")], {"webhook": {}})
    journal.record("last", [row("last.png", "h")], {"files": {}})
    action = journal.due("files", "command")
    assert action is not None
    assert action.key == "last"
    journal.close()


def test_a_clock_that_jumps_neither_stalls_nor_floods_the_attempts(judged, tmp_path):
    judged("webhook")
    clock = [1e9]
    journal = Journal(tmp_path, lambda: clock[0])
    journal.failed(journal.start(journal.due("webhook")), "down")
    assert not journal.due("webhook")
    clock[0] += 1e8  # years ahead: the attempt is due, once
    journal.failed(journal.start(journal.due("webhook")), "down")
    assert not journal.due("webhook")
    clock[0] -= 2e8  # and back
    journal.failed(journal.start(journal.due("webhook")), "down")
    assert not journal.due("webhook")
    clock[0] += 4.0
    action = journal.due("webhook")
    assert action.attempts == 3 < ATTEMPTS
    journal.close()


def test_times_of_files_and_the_systems_clock_have_no_part_in_settling(incoming, monkeypatch):
    steady = [0.0]
    source = FolderSource(incoming, settle=2.0, clock=lambda: steady[0])
    for name, moment in (("future.png", 4e9), ("past.png", 0.0)):
        os.utime(save_plate(incoming / name, 1), (moment, moment))
    assert source.take(8, lambda stamp: False) == []
    monkeypatch.setattr(time, "time", lambda: 0.0)
    steady[0] = 2.0
    assert [one.name for one in source.take(8, lambda stamp: False)] == ["future.png", "past.png"]


def test_a_folder_that_is_gone_is_told_once_and_its_images_are_judged_when_it_is_back(
    product, incoming, tmp_path
):
    said: list[str] = []
    out, aside = tmp_path / "out", tmp_path / "aside"
    watcher = Watcher(
        product, FolderSource(incoming, settle=0.0), out, [FileTarget(tmp_path / "sorted", incoming, moves=False)],
        poll=0.01, say=said.append,
    )  # fmt: skip
    save_plate(incoming / "a.png", 1)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        wait_for(lambda: watcher.counts.images == 1)
        incoming.rename(aside)
        wait_for(lambda: any(text.startswith("waiting") for text in said))
        save_plate(aside / "b.png", 2)
        time.sleep(0.1)
        aside.rename(incoming)
        wait_for(lambda: len(list((tmp_path / "sorted").rglob("[ab].png"))) == 2)
    finally:
        watcher.stop.set()
        thread.join()
    about_source = [text for text in said if not text.startswith("files: ")]
    assert about_source == [f"waiting: {incoming}: No such file or directory", "the source is back"]
    assert sorted(row["path"] for row in iterate_rows(out, ["path"])) == ["a.png", "b.png"]


def test_a_half_written_file_is_an_error_and_judged_when_it_is_whole(product, incoming, tmp_path):
    whole = save_plate(incoming / "a.png", 1).read_bytes()
    (incoming / "a.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    for data in (whole[: len(whole) // 2], whole):
        (incoming / "a.png").write_bytes(data)
        Watcher(product, FolderSource(incoming, settle=0.0), out, poll=0.01).run(once=True)
    rows = list(iterate_rows(out, ["path", "verdict"]))
    assert [one["verdict"] == "error" for one in rows] == [True, False]
    assert rows[1]["path"].startswith("a.png@")


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
