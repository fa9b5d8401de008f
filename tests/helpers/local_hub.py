"""A Hugging Face hub on this machine: an HTTP server of files, as the hub client asks for them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


def make_handler(folder: Path, gated: frozenset[str], asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers ``/ORG/NAME/resolve/REVISION/FILE`` from ``folder/ORG/NAME/FILE``."""

        def reply(self, *, body: bool) -> None:
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            asked.append(f"{self.command} {self.path}")
            file = folder / repository / rest.partition("/")[2]
            error = None
            if repository in gated:
                error = (403, "GatedRepo")
            elif not (folder / repository).is_dir():
                error = (404, "RepoNotFound")
            elif not file.is_file():
                error = (404, "EntryNotFound")
            content = file.read_bytes() if error is None else b""
            self.send_response(200 if error is None else error[0])
            if error is None:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", error[1])
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.reply(body=True)

        def do_HEAD(self) -> None:
            self.reply(body=False)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def local_hub(folder: Path, gated: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Serve ``folder``; yields the endpoint and the list of requests so far."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(folder, gated, asked))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
