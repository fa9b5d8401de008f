"""Decision log: one line of JSON per judged image, never the image. Written only where the operator asks for it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("clipspect.service")
KEPT = (
    "content_hash",
    "object",
    "method",
    "model",
    "weights",
    "verdict",
    "score",
    "threshold",
    "profile",
    "error",
)


class DecisionLog:
    """A file that decisions are appended to."""

    def __init__(self, path: Path | None) -> None:
        """Set the file; None logs nothing."""
        self._path = path
        self._lock = threading.Lock()

    def write(self, results: Sequence[Mapping[str, Any]], client: str) -> None:
        """Append a line per result. A disk that is full is reported in the service's log and stops no answer.

        Args:
            results: as they are sent.
            client: name of the API key of the request.
        """
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = [
            json.dumps({"time": now, "client": client, **{name: one[name] for name in KEPT}}) + "\n"
            for one in results
        ]
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            log.error("%d decisions were not logged: %s", len(lines), error)
