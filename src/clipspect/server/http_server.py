"""Web server in a thread of this process, in front of replicas that run as Ray processes."""

from __future__ import annotations

import threading
import time
from typing import Any

import uvicorn

from clipspect.errors import UsageError

LEAVE_S = 5
"""Time limit for running requests when the service stops."""
START_S = 30


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
