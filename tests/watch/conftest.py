"""A product with a small model, and images that arrive."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

import clipspect
from helpers.images import plate


def save_plate(path, number: int, *, blot: bool = False):
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.tmp.png")
    Image.fromarray(plate(number, blot=blot)).save(staged)
    staged.replace(path)
    return path


@pytest.fixture(scope="session")
def profile(tmp_path_factory, small_model):
    detector = clipspect.load("anoclip", model=str(small_model))
    good = [plate(number) for number in range(100, 108)]
    made, _ = clipspect.create_profile(detector, good, "plate", "plate")
    path = tmp_path_factory.mktemp("profile") / "plate.clipspect"
    made.write(path)
    return path


@pytest.fixture(scope="session")
def product(profile):
    return clipspect.load_product(profile)


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@contextmanager
def receiver(answers=(200,)):
    """A web server that keeps what it is sent and answers with each status in turn, then with the last."""
    got: list[tuple[dict, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), body))
            self.send_response(answers[min(len(got), len(answers)) - 1])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()
