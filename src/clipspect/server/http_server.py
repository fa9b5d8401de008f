"""The service's own web server, in a thread of this process, in front of replicas that are processes of Ray's."""

from __future__ import annotations

import threading
import time
from typing import Any

import uvicorn

from clipspect.errors import UsageError

LEAVE_S = 5
"""How long requests that are under way may take when the service stops."""
START_S = 30


class HttpServer:
    """Listens on one address until it is stopped."""

    def __init__(self, app: Any, *, host: str, port: int) -> None:
        """Start listening. Raises UsageError where that is impossible."""
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http="h11",  # bounds what a request's head may hold, which the faster parser does not
            ws="none",
            lifespan="off",
            log_config=None,  # the service logs its requests itself, without what strangers send
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
        """Take no more requests, and end those under way."""
        self._server.should_exit = True
        self._thread.join(2 * LEAVE_S)
