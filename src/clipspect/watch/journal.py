"""Journal of a watch: which images were judged, and which actions are still to be done. Survives kill -9.

An image's rows and its actions are recorded in one SQLite transaction, before anything is done with them. Rows go from
here into the Parquet parts of the results folder; actions are repeated until they succeed or are given up.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipspect.errors import ResultsError
from clipspect.results.schema import arrow_schema

JOURNAL = "watch.sqlite"
LATEST = "latest.png"
"""Overlay of the image judged last, for the operator's view."""
DEAD_LETTERS = "dead-letters.jsonl"
FIRST_WAIT, LONGEST_WAIT, ATTEMPTS = 1.0, 300.0, 12
"""Seconds before the second attempt, most seconds between two, and attempts before an action is given up."""
_TABLES = """
CREATE TABLE IF NOT EXISTS images(
  key TEXT PRIMARY KEY, path TEXT NOT NULL, content_hash TEXT NOT NULL, rows BLOB, failed INTEGER NOT NULL,
  stored INTEGER NOT NULL DEFAULT 0, verdict TEXT NOT NULL, score REAL, threshold REAL, reason TEXT,
  time REAL NOT NULL);
CREATE INDEX IF NOT EXISTS images_by_time ON images(time);
CREATE INDEX IF NOT EXISTS unstored_images ON images(stored) WHERE NOT stored;
CREATE INDEX IF NOT EXISTS images_by_path ON images(path);
CREATE TABLE IF NOT EXISTS files(
  name TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS actions(
  key TEXT NOT NULL, target TEXT NOT NULL, event TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  due REAL NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting', PRIMARY KEY (key, target));
CREATE INDEX IF NOT EXISTS waiting_actions ON actions(state, target, due);
"""


@dataclass(frozen=True)
class Action:
    """Something to do about a judged image."""

    key: str
    """Of the image; receivers tell repeated deliveries by it."""
    target: str
    event: Mapping[str, Any]
    attempts: int
    """Those that were started before."""


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was judged."""

    name: str
    size: int
    modified: int
    """Nanoseconds, as the file system tells them."""


def image_key(path: str, content_hash: str, profile: str) -> str:
    """What identifies the judgement of an image: its name, its content and the profile."""
    return hashlib.sha256(f"{path}\0{content_hash}\0{profile}".encode()).hexdigest()[:32]


def deciding_row(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the row that decides about an image of several methods: the first with an error or flag, or the first."""
    return next((row for row in rows if row["error"] is not None or row["flag"]), rows[0])


class Journal:
    """The journal of one results folder; may be used from several threads."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.time) -> None:
        """Open or create it.

        Raises:
            ResultsError: the file cannot be opened, or is damaged.
        """
        self._place = out / JOURNAL
        self._dead = out / DEAD_LETTERS
        self._clock = clock
        self._lock = threading.RLock()
        with _journal_errors(self._place):
            self._base = sqlite3.connect(self._place, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(_TABLES)
            # a results folder drops rows with an error when it is opened
            self._base.execute("UPDATE images SET stored = 0 WHERE failed")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def is_judged(self, stamp: Stamp) -> bool:
        """Whether this very file, unchanged since, was judged."""
        found = self._one("SELECT size, modified FROM files WHERE name = ?", stamp.name)
        return bool(found == (stamp.size, stamp.modified))

    def knows(self, key: str) -> bool:
        """Whether an image is recorded."""
        return self._one("SELECT 1 FROM images WHERE key = ?", key) is not None

    def has_path(self, path: str) -> bool:
        """Whether rows of that path are recorded."""
        return self._one("SELECT 1 FROM images WHERE path = ?", path) is not None

    def record(
        self,
        key: str,
        rows: Sequence[Mapping[str, Any]],
        events: Mapping[str, Mapping[str, Any]],
        stamp: Stamp | None = None,
    ) -> bool:
        """Record an image with its rows and actions, in one transaction.

        Args:
            key: of the image.
            rows: one per method.
            events: target → what it is to be told.
            stamp: of its file.

        Returns:
            Whether it is new; a known image is left as it is.

        Raises:
            ResultsError: the disk is full or the file cannot be written; nothing is recorded then.
        """
        failed = any(row["error"] is not None for row in rows)
        first = deciding_row(rows)
        with self._transaction() as base:
            done = base.execute(
                "INSERT OR IGNORE INTO images(key, path, content_hash, rows, failed, verdict, score, threshold, reason,"
                " time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, *(first[name] for name in ("path", "content_hash")), _pack(rows), failed,
                 *(first[name] for name in ("verdict", "score", "threshold", "error")), self._clock()),
            )  # fmt: skip
            if stamp is not None:
                self._put_stamp(base, stamp, key)
            if not done.rowcount:
                return False
            self._put_actions(base, key, events)
        return True

    def notify(self, key: str, events: Mapping[str, Mapping[str, Any]]) -> None:
        """Record actions that are not about one image; a known key is left as it is."""
        with self._transaction() as base:
            self._put_actions(base, key, events)

    def came_again(self, key: str, stamp: Stamp, target: str | None) -> None:
        """Note that a file with the content of a recorded image is there again; ``target`` is to act on it again."""
        with self._transaction() as base:
            self._put_stamp(base, stamp, key)
            if target is not None:
                base.execute(
                    "UPDATE actions SET state = 'waiting', attempts = 0, due = 0 WHERE key = ? AND target = ?",
                    (key, target),
                )

    def unstored(self, limit: int) -> list[tuple[str, list[dict[str, Any]]]]:
        """(key, rows) of images whose rows are not yet in the results folder."""
        found = self._all("SELECT key, rows FROM images WHERE NOT stored ORDER BY rowid LIMIT ?", limit)
        return [(key, _unpack(packed)) for key, packed in found]

    def unstored_names(self) -> list[tuple[str, str, str]]:
        """(key, path, content hash) of judged images whose rows are not marked as stored."""
        return self._all("SELECT key, path, content_hash FROM images WHERE NOT stored AND NOT failed")

    def mark_stored(self, keys: Sequence[str]) -> None:
        """Note that rows are in the results folder. Only those of failed images are kept here too."""
        with self._transaction() as base:
            base.executemany(
                "UPDATE images SET stored = 1, rows = CASE WHEN failed THEN rows END WHERE key = ?",
                [(key,) for key in keys],
            )

    def due(self, *targets: str) -> Action | None:
        """The oldest action of targets to do now. A clock that is set back delays it by the longest wait at most."""
        now = self._clock()
        found = self._one(
            "SELECT key, target, event, attempts FROM actions WHERE state = 'waiting' AND (due <= ? OR due > ?)"
            f" AND target IN ({', '.join('?' * len(targets))}) ORDER BY rowid LIMIT 1",
            now, now + LONGEST_WAIT, *targets,
        )  # fmt: skip
        return found and Action(found[0], found[1], json.loads(found[2]), found[3])

    def start(self, action: Action) -> Action:
        """Note that an action is tried now. What cannot be noted is not to be done: it would be repeated endlessly.

        Raises:
            ResultsError: the disk is full or the file cannot be written.
        """
        self._set_state(action, "waiting", action.attempts + 1)
        return replace(action, attempts=action.attempts + 1)

    def succeeded(self, action: Action) -> None:
        """Note that an action was done."""
        self._set_state(action, "done", action.attempts)

    def failed(self, action: Action, reason: str) -> bool:
        """Note that an action failed; return whether it is given up, with a line in the file of dead letters."""
        attempts = action.attempts
        if attempts >= ATTEMPTS:
            entry = {"key": action.key, "target": action.target, "reason": reason, "event": action.event}
            with _journal_errors(self._dead), self._dead.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._set_state(action, "given up", attempts)
            return True
        wait = min(FIRST_WAIT * 2 ** (attempts - 1), LONGEST_WAIT)
        self._set_state(action, "waiting", attempts, self._clock() + wait)
        return False

    def latest(self, limit: int, verdicts: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The images judged last, newest first; only those with some verdicts, where any are named."""
        chosen = f"WHERE verdict IN ({', '.join('?' * len(verdicts))})" if verdicts else ""
        names = ("path", "verdict", "score", "threshold", "reason", "time")
        rows = self._all(
            f"SELECT {', '.join(names)} FROM images {chosen} ORDER BY rowid DESC LIMIT ?", *verdicts, limit
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def verdicts_since(self, moment: float) -> dict[str, int]:
        """Verdict → number of images judged since a moment (seconds of the system's clock)."""
        return dict(
            self._all("SELECT verdict, COUNT(*) FROM images WHERE time >= ? GROUP BY verdict", moment)
        )

    def counts(self) -> dict[str, int]:
        """State → number of actions: waiting, done, given up."""
        return dict(self._all("SELECT state, COUNT(*) FROM actions GROUP BY state"))

    def _set_state(self, action: Action, state: str, attempts: int, due: float = 0) -> None:
        with self._transaction() as base:
            base.execute(
                "UPDATE actions SET state = ?, attempts = ?, due = ? WHERE key = ? AND target = ?",
                (state, attempts, due, action.key, action.target),
            )

    @staticmethod
    def _put_actions(base: sqlite3.Connection, key: str, events: Mapping[str, Mapping[str, Any]]) -> None:
        base.executemany(
            "INSERT OR IGNORE INTO actions(key, target, event) VALUES (?, ?, ?)",
            [(key, target, json.dumps(event)) for target, event in events.items()],
        )

    @staticmethod
    def _put_stamp(base: sqlite3.Connection, stamp: Stamp, key: str) -> None:
        base.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (stamp.name, stamp.size, stamp.modified, key)
        )

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock, _journal_errors(self._place):
            return self._base.execute(query, values).fetchone()

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock, _journal_errors(self._place):
            return self._base.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _journal_errors(self._place):
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise


@contextmanager
def _journal_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise ResultsError(f"{place}: {error}; free some space or check the folder's permissions") from error


def _pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa

    table = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(packed: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa

    with pa.ipc.open_stream(packed) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows
