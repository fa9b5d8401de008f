"""Web server in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import uvicorn

from clipspect.errors import UsageError

LEAVE_S = 5
"""Time limit for running requests when the service stops."""
START_S = 30


def check_port(host: str, port: int) -> None:
    """Raise UsageError if the address is in use or does not belong to this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another with --port"
            ) from error


class HttpServer:
    """HTTP server on one address, with explicit stop."""

    def __init__(self, app: Any, *, host: str, port: int) -> None:
        """Start listening. Raises UsageError if the address cannot be used."""
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http="h11",  # h11 limits the size of request headers; the faster parser does not
            ws="none",
            lifespan="off",
            log_config=None,  # the service logs requests itself, without client data
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LEAVE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="clipspect-listener", daemon=True)
        self._thread.start()
        until = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise UsageError(f"cannot listen on {host}, port {port}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop accepting requests, and finish running ones."""
        self._server.should_exit = True
        self._thread.join(2 * LEAVE_S)
