"""Frames of videos, cameras and streams are judged in steps and once, also where a stream is lost and comes back."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

import helpers
from clipspect.errors import UsageError
from clipspect.results.store import iterate_rows
from clipspect.watch.video import Camera, VideoFile
from clipspect.watch.watcher import Watcher
from helpers.images import plate

SERVER = Path(helpers.__file__).parent / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"
GST = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None); " \
    "assert Gst.ElementFactory.find('x264enc')"  # fmt: skip


def paths_of(out: Path) -> list[str]:
    return [row["path"] for row in iterate_rows(out, ["path"])]


def test_frames_of_a_video_are_judged_in_steps_and_once(product, tmp_path):
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 60))
    for number in range(7):
        writer.write(np.ascontiguousarray(plate(number)[..., ::-1]))
    writer.release()
    out = tmp_path / "out"
    assert Watcher(product, VideoFile(path, 3), out, poll=0.01).run().images == 3
    assert paths_of(out) == [f"line.avi#{n:06d}" for n in (0, 3, 6)]
    assert Watcher(product, VideoFile(path, 3), out, poll=0.01).run().images == 0
    with pytest.raises(UsageError, match="cannot be opened"):
        VideoFile(tmp_path / "absent.avi")


class FakeCapture:
    """A camera that gives each number of a queue as a frame of that brightness, and is lost at None."""

    def __init__(self, numbers: deque, opened: bool = True):
        self.numbers, self.opened, self.number = numbers, opened, 0

    def isOpened(self):
        return self.opened

    def grab(self):
        while self.opened and not self.numbers:
            time.sleep(0.001)
        number = self.numbers.popleft() if self.opened else None
        self.number = number or 0
        return number is not None

    def retrieve(self):
        return True, np.full((4, 4, 3), self.number, np.uint8)

    def release(self):
        self.opened = False


def brightness(camera: Camera) -> list[int]:
    return [int(arrival.image[0, 0, 0]) for arrival in camera.take(8, lambda stamp: False)]


def test_a_camera_gives_the_latest_frame_and_is_opened_again(monkeypatch):
    monkeypatch.setattr("clipspect.watch.video.REOPEN_SECONDS", 0.2)
    monkeypatch.setattr("clipspect.watch.video.FRAME_SECONDS", 0.1)
    numbers: deque = deque()
    attempts = iter([True, False, True])
    monkeypatch.setattr(Camera, "_open", lambda self: FakeCapture(numbers, next(attempts)))
    camera = Camera("rtsp://kim:s3cret@camera/line?key=s3cret", 3)
    assert brightness(camera) == []
    numbers.extend(range(10, 19))  # every third: 10, 13, 16
    while numbers:
        time.sleep(0.01)
    time.sleep(0.05)
    assert brightness(camera) == [16], "frames that came while another was scored are left out"
    assert brightness(camera) == []
    numbers.append(None)
    time.sleep(0.1)
    assert camera.missing == "rtsp://camera gives no frames"
    numbers.extend(range(20, 23))
    deadline = time.monotonic() + 10
    while not (found := brightness(camera)) and time.monotonic() < deadline:
        pass
    assert found == [20], "the third frame after 16"
    assert not camera.missing
    numbers.append(None)
    camera.close()
    assert not any(thread.name == "camera" for thread in threading.enumerate())


def test_passwords_in_addresses_are_not_shown(run, profile, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"rtsp://kim:s3cret@127.0.0.1:{free.getsockname()[1]}/line?key=s3cret"
    code, said, errors = run("watch", address, "--profile", str(profile), "-o", str(tmp_path / "out"))
    assert code == 2
    assert "cannot be opened as a camera or stream" in errors
    assert "s3cret" not in said + errors
    code, _, errors = run("watch", address, "--profile", str(profile), "-o", str(tmp_path / "out"), "--once")
    assert code == 2
    assert "a camera or stream does not end" in errors


@contextmanager
def rtsp_server(port: int):
    process = subprocess.Popen(
        [SYSTEM_PYTHON, SERVER, str(port), "kim", "s3cret"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def has_rtsp_server() -> bool:
    if shutil.which(SYSTEM_PYTHON) is None:
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", GST], capture_output=True, check=False).returncode == 0


@pytest.mark.integration
def test_a_stream_may_be_lost_and_the_watch_killed(profile, tmp_path):
    if not has_rtsp_server():
        pytest.skip("needs GStreamer's RTSP server: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-ugly")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, log = tmp_path / "out", tmp_path / "log.txt"
    words = [sys.executable, "-c", "from clipspect.cli import main; main()", "watch",
             f"rtsp://kim:s3cret@127.0.0.1:{port}/line", "--profile", str(profile), "--out", str(out),
             "--every", "3", "--poll", "0.05"]  # fmt: skip

    def wait_for(what: str, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while log.read_text(encoding="utf-8").count(what) < times:
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.05)

    with log.open("w") as file:
        with rtsp_server(port):
            watch = subprocess.Popen(words, stdout=file, stderr=file)
            wait_for("stream 2", 3)
        wait_for("waiting: rtsp://127.0.0.1")
        with rtsp_server(port):
            wait_for("the source is back")
            seen = log.read_text(encoding="utf-8").count("stream 2")
            wait_for("stream 2", seen + 2)
            watch.kill()
            watch.wait()
            seen = log.read_text(encoding="utf-8").count("stream 2")
            watch = subprocess.Popen(words, stdout=file, stderr=file)
            wait_for("stream 2", seen + 2)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(60) == 0
    paths = paths_of(out)
    assert len(set(paths)) == len(paths) >= log.read_text(encoding="utf-8").count("stream 2")
    assert all(path.startswith("stream 20") for path in paths)
    for path in (log, *(path for path in tmp_path.rglob("*") if path.is_file())):
        assert b"s3cret" not in path.read_bytes(), path
