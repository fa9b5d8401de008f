"""Targets of a watch's actions: file folders, a webhook, MQTT, a command. Each may be repeated without harm."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from clipspect.data.decode import hash_file
from clipspect.errors import ImageError, UsageError

Event = Mapping[str, Any]
TIME_LIMIT = 10.0
FILES = "files"
PLACES = {"clean": "ok", "undecided": "ok", "error": "error"}
"""Verdict → folder of its images; the others go to "ng" (not good)."""


class DeliveryError(Exception):
    """A target could not be reached or refused; the delivery is repeated later."""


class Target(Protocol):
    """Something that is told of every judged image."""

    name: str

    def send(self, key: str, event: Event) -> None:
        """Deliver an event. Raises DeliveryError."""


DRIFT = "drift"
"""Value of ``event`` in events that are not about one image."""


def shown_address(address: str) -> str:
    """Return an address for messages: scheme, host and port. Its other parts may hold passwords."""
    parts = urlsplit(address)
    if not parts.scheme or not parts.netloc:
        return address
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def place_of(verdict: str) -> str:
    """The folder of an image with a verdict: "ok", "ng" or "error"."""
    return PLACES.get(verdict, "ng")


def topic_of(event: Event) -> str:
    """The last part of an event's MQTT topic."""
    return DRIFT if event.get("event") == DRIFT else place_of(str(event["verdict"]))


@dataclass(frozen=True)
class FileTarget:
    """Moves or copies images to ``ok``, ``ng`` and ``error`` below a folder."""

    folder: Path
    source: Path
    """The watched folder."""
    moves: bool
    name: str = FILES

    def send(self, key: str, event: Event) -> None:
        """Put the image in its place. A copy that is there already counts, so that a kill in between does no harm."""
        path = str(event["file"])
        origin = self.source.joinpath(*_safe_parts(path))
        aim = self.folder.joinpath(place_of(str(event["verdict"])), *_safe_parts(path))
        try:
            if _has_content(aim, event["content_hash"]):
                done = aim
            else:
                done = aim if not aim.exists() else aim.with_stem(f"{aim.stem}.{event['content_hash'][:8]}")
                if not origin.exists() and _has_content(done, event["content_hash"]):
                    return
                done.parent.mkdir(parents=True, exist_ok=True)
                staged = done.with_name(f".{key}.tmp")
                with origin.open("rb") as read, staged.open("wb") as written:
                    shutil.copyfileobj(read, written)
                    written.flush()
                    os.fsync(written.fileno())
                if not _has_content(staged, event["content_hash"]):
                    staged.unlink()
                    raise DeliveryError(f"{origin} has changed since it was judged")
                staged.replace(done)
            if self.moves and _has_content(origin, event["content_hash"]):
                origin.unlink()
        except OSError as error:
            raise DeliveryError(f"{error.filename or aim}: {error.strerror or error}") from error


def _safe_parts(path: str) -> list[str]:
    """The parts of a relative path, which cannot lead out of a folder."""
    return [part for part in PurePosixPath(path).parts if part not in ("/", "..")]


def _has_content(path: Path, content_hash: str) -> bool:
    try:
        return path.is_file() and hash_file(path) == content_hash
    except ImageError:
        return False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the signature is for the address that was given."""
        return


@dataclass(frozen=True)
class Webhook:
    """POSTs events as JSON, signed with HMAC-SHA256.

    ``Clipspect-Signature: t=SECONDS,v1=HEX`` where HEX is the HMAC of ``SECONDS.BODY``. ``Idempotency-Key`` is the same
    for repeated deliveries of one image.
    """

    url: str
    secret: bytes
    name: str = "webhook"

    def __post_init__(self) -> None:
        """Raise UsageError for an address that is not HTTP, or without a secret."""
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise UsageError(
                f"--webhook {shown_address(self.url)}: give an address that starts with http:// or https://"
            )
        if "@" in urlsplit(self.url).netloc:
            raise UsageError("--webhook: leave user and password out of the address; what is sent is signed")
        if not self.secret:
            raise UsageError("the webhook's secret is empty; write it to a file for --webhook-secret-file")

    def send(self, key: str, event: Event) -> None:
        """POST once; any answer but 2xx is an error."""
        shown = shown_address(self.url)
        body = json.dumps({"id": key, **event}, ensure_ascii=False).encode()
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "clipspect",
            "Idempotency-Key": key,
            "Clipspect-Signature": f"t={stamp},v1={sign(self.secret, stamp, body)}",
        }
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIME_LIMIT) as answer:
                if not 200 <= answer.status < 300:
                    raise DeliveryError(f"{shown} answered {answer.status}")
        except urllib.error.HTTPError as error:
            raise DeliveryError(f"{shown} answered {error.code}") from None
        except (OSError, ValueError) as error:
            raise DeliveryError(f"{shown}: {error}") from None
        except http.client.HTTPException as error:
            raise DeliveryError(f"{shown} gave no HTTP answer ({type(error).__name__})") from None


def sign(secret: bytes, stamp: str, body: bytes) -> str:
    """HMAC-SHA256 (hex) of a time stamp and a body, as receivers compute it."""
    return hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass
class Mqtt:
    """Publishes events as JSON with quality of service 1 on ``TOPIC/PLACE``: ``line3/ng``, ``line3/drift``."""

    url: str
    """mqtt://[user:password@]host[:port]/topic; mqtts:// with TLS."""
    name: str = "mqtt"
    _client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise UsageError for an address without host or topic, or without the extra."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not parts.path.strip("/"):
            raise UsageError("--mqtt: give mqtt://host/topic, such as mqtt://localhost/line3")
        try:
            import paho.mqtt.client  # noqa: F401
        except ImportError:
            raise UsageError("--mqtt needs the extra [mqtt]: pip install 'clipspect[mqtt]'") from None

    def send(self, key: str, event: Event) -> None:
        """Publish and wait for the broker's acknowledgement."""
        parts = urlsplit(self.url)
        body = json.dumps({"id": key, **event}, ensure_ascii=False)
        try:
            client = self._connected()
            sent = client.publish(f"{parts.path.strip('/')}/{topic_of(event)}", body, qos=1)
            sent.wait_for_publish(TIME_LIMIT)
            if not sent.is_published():
                raise DeliveryError("the broker did not acknowledge")
        except (OSError, ValueError, RuntimeError, DeliveryError) as error:
            self._drop()
            raise DeliveryError(f"{parts.hostname}: {error}") from None

    def _connected(self) -> Any:
        if self._client is None or not self._client.is_connected():
            self._drop()
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion

            parts = urlsplit(self.url)
            client = Client(CallbackAPIVersion.VERSION2)
            if parts.username:
                client.username_pw_set(parts.username, parts.password)
            if parts.scheme == "mqtts":
                client.tls_set()
            client.connect_timeout = TIME_LIMIT
            client.connect(str(parts.hostname), parts.port or (8883 if parts.scheme == "mqtts" else 1883))
            client.loop_start()
            self._client = client
        return self._client

    def _drop(self) -> None:
        """Forget a connection, and what it has not sent: it would send it later, beside the repeated delivery."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
        self._client = None


@dataclass(frozen=True)
class Command:
    """Runs a command with the event as JSON on its standard input. No shell reads any name of a file."""

    command: str
    name: str = "command"

    def __post_init__(self) -> None:
        """Raise UsageError for a command that cannot be read or is not there."""
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"--run {self.command}: {error}") from None
        if not words or shutil.which(words[0]) is None:
            raise UsageError(f"--run {self.command}: no such program")

    def send(self, key: str, event: Event) -> None:
        """Run it; an exit code other than 0 is an error."""
        body = json.dumps({"id": key, **event}, ensure_ascii=False)
        try:
            done = subprocess.run(
                shlex.split(self.command),
                input=body,
                text=True,
                errors="replace",
                timeout=6 * TIME_LIMIT,
                capture_output=True,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeliveryError(str(error)) from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [""]
            raise DeliveryError(f"exit code {done.returncode} {last[0]}".strip())
