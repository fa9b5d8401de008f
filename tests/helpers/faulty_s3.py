"""An S3 server on this machine that answers, and now and then does not: moto behind a layer of faults."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Faults:
    """What goes wrong with the first readings of objects, in turn by their number."""

    app: Callable[..., Iterable[bytes]]
    errors: int = 4
    """503 answers to the first of every three objects: more than S3's own client tries in one go."""
    stall: float = 4.0
    """Seconds without a byte for the second one, once; the client's patience is three."""
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET" or not path.endswith(".png"):
            return self.app(environ, start)
        with self.lock:
            self.seen[path] += 1
            times = self.seen[path]
            number = list(self.seen).index(path)
        if number % 3 == 0 and times <= self.errors:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if number % 3 == 1 and times == 1:
            time.sleep(self.stall)
        return self.app(environ, start)


@contextmanager
def faulty_s3(bucket: str) -> Iterator[tuple[Faults, str]]:
    """The faults, and the end of an S3 URI that leads to a new bucket on the server."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
        client.create_bucket(Bucket=bucket)
        yield faults, f"?scheme=http&endpoint_override={address}&region=us-east-1"
    finally:
        server.shutdown()
        thread.join()
