"""Targets of a watch may be repeated after a kill, and nothing of a file's name leads elsewhere."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading

import pytest

from clipspect.errors import UsageError
from clipspect.watch.targets import Command, DeliveryError, FileTarget, Webhook
from watch.conftest import receiver, save_plate

EVENT = {"path": "a.png", "file": "a.png", "verdict": "flagged", "content_hash": "0" * 64}


def test_a_move_survives_a_kill_at_any_point(tmp_path):
    source, aim = tmp_path / "in", tmp_path / "out"
    path = save_plate(source / "a.png", 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    target, event = FileTarget(aim, source, moves=True), {**EVENT, "content_hash": digest}
    (aim / "ng").mkdir(parents=True)
    (aim / "ng" / ".key.tmp").write_bytes(b"half")  # killed while it was copied
    target.send("key", event)
    assert not path.exists()
    assert (aim / "ng" / "a.png").exists()
    save_plate(source / "a.png", 1)  # killed between copy and removal
    target.send("key", event)
    target.send("key", event)  # killed before it was noted
    assert [p.name for p in tmp_path.rglob("*.*") if p.is_file()] == ["a.png"]


def test_names_cannot_lead_out_of_the_folders(tmp_path):
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    target = FileTarget(tmp_path / "out", tmp_path / "in", moves=True)
    for path in ("../secret.png", str(secret)):
        with pytest.raises(DeliveryError):
            target.send("key", {**EVENT, "file": path, "content_hash": digest})
    assert secret.exists()


def test_a_redirect_and_an_unreachable_address_are_errors():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryError):
            Webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/", b"s").send("key", EVENT)
    with receiver((302,)) as (url, got), pytest.raises(DeliveryError, match="302"):
        Webhook(url, b"s").send("key", EVENT)
    assert len(got) == 1
    for url, secret in (
        ("ftp://host/x", b"s"), ("http://", b"s"), ("http://host", b""), ("http://kim:s3cret@host", b"s"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as error:
            Webhook(url, secret)
        assert "s3cret" not in str(error.value)


def test_an_answer_that_is_no_http_is_an_error_and_does_not_show_the_path():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 this is a mail server\r\n")

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with pytest.raises(DeliveryError) as error:
            Webhook(f"http://127.0.0.1:{port}/s3cret", b"s").send("key", EVENT)
    assert str(error.value) == f"http://127.0.0.1:{port} gave no HTTP answer (BadStatusLine)"


def test_a_command_gets_the_event_on_its_input_and_no_shell_reads_names(tmp_path):
    seen = tmp_path / "seen.json"
    script = tmp_path / "act.py"
    script.write_text(f"import sys; open({str(seen)!r}, 'w').write(sys.stdin.read())")
    event = {**EVENT, "path": f"$(touch {tmp_path}/evil); a.png"}
    Command(f"{sys.executable} {script}").send("key", event)
    assert json.loads(seen.read_text(encoding="utf-8"))["path"] == event["path"]
    assert not (tmp_path / "evil").exists()
    with pytest.raises(DeliveryError, match="exit code 3"):
        Command(f"{sys.executable} -c 'import sys; sys.exit(3)'").send("key", EVENT)
    loud = r"import sys; sys.stdout.buffer.write(b'\xff'); sys.stderr.buffer.write(b'\xff'); sys.exit(3)"
    with pytest.raises(DeliveryError, match="exit code 3"):
        Command(f'{sys.executable} -c "{loud}"').send("key", EVENT)
    with pytest.raises(UsageError, match="no such program"):
        Command("no-such-program-here x")
