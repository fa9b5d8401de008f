"""Where pretrained weights come from: hub repositories and release files, with their identity checked.

open_clip 3.3 maps one tag to the hub folder of another epoch; :func:`weights_config` corrects it. A file is checked
against its published SHA-256: the hub stores files under their SHA-256, and open_clip's releases carry the first eight
digits in the file name.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipspect.errors import WeightsError

CORRECTED_HUBS = {
    ("ViT-B-16-plus-240", "laion400m_e32"): "timm/vit_base_patch16_plus_clip_240.laion400m_e32/",
}
"""(architecture, tag) → hub repository, where open_clip names that of other weights."""
RELEASES = Path("~/.cache/clip")
"""Folder where open_clip keeps files of its releases."""
_RELEASE_DIGEST = re.compile(r"-([0-9a-f]{8})\.pt$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightsFile:
    """File of weights whose identity is known."""

    path: Path
    source: str
    """Where it comes from: a repository and file of the hub, or the name of a release file."""
    sha256: str
    """SHA-256 (hex) of the file."""
    published: str
    """Published beginning of that digest, 8 or 64 hex digits; empty where nothing is published."""


def weights_config(name: str, tag: str) -> dict[str, Any]:
    """Return open_clip's configuration of pretrained weights, with the repository that holds these weights."""
    import open_clip

    config = dict(open_clip.get_pretrained_cfg(name, tag))
    hub = CORRECTED_HUBS.get((name, tag))
    return config if hub is None else {**config, "hf_hub": hub}


def fetch_weights(config: dict[str, Any]) -> WeightsFile:
    """Find the file of pretrained weights in the caches of this machine, or download it.

    The hub's cache comes first, then a release file that open_clip has downloaded, then both downloads in that order.

    Args:
        config: from :func:`weights_config`.

    Raises:
        WeightsError: the file is not what its publisher says.
        Exception: whatever the hub client or urllib raises for a file that is not available.
    """
    from open_clip.pretrained import download_pretrained, download_pretrained_from_url

    hub, url = str(config.get("hf_hub") or ""), str(config.get("url") or "")
    release = RELEASES.expanduser() / url.rsplit("/", 1)[-1]
    cached = _from_cache(hub) if hub else None
    if cached is not None:
        return identify(cached, hub)
    if url and release.is_file():
        return identify(release)
    with hub_access():
        if hub:
            try:
                return identify(Path(download_pretrained({"hf_hub": hub})), hub)
            except OSError:
                if not url:
                    raise
        return identify(Path(download_pretrained_from_url(url)))


def _from_cache(hub: str) -> Path | None:
    """Return the file of a repository in the hub's cache, without a request; None if it is not there."""
    from open_clip.pretrained import download_pretrained

    try:
        with _offline():
            return Path(download_pretrained({"hf_hub": hub}))
    except OSError:
        return None


def identify(path: Path, hub: str = "") -> WeightsFile:
    """Compute a file's SHA-256 and compare it with what its publisher says.

    Args:
        path: the file; in a hub cache a link to a file that is named after its SHA-256.
        hub: repository of the hub it comes from.

    Raises:
        WeightsError: the two differ.
    """
    stored = path.resolve().name
    release = _RELEASE_DIGEST.search(path.name)
    published = stored if _SHA256.fullmatch(stored) else release.group(1) if release else ""
    found = file_sha256(path)
    if not found.startswith(published):
        raise WeightsError(
            f"{path} is not the published file: its SHA-256 is {found}, published is {published}…; delete it and"
            " fetch it again"
        )
    source = f"{hub.rstrip('/')}/{path.name}" if hub else path.name
    return WeightsFile(path, source, found, published)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path) -> None:
    """Check a file against ``FILE.sha256`` next to it, in sha256sum's format, if that file exists.

    Raises WeightsError.
    """
    beside = path.with_name(f"{path.name}.sha256")
    if not beside.is_file():
        return
    wanted = beside.read_text(encoding="utf-8").split()[:1]
    found = file_sha256(path)
    if wanted != [found]:
        raise WeightsError(
            f"{path} is not what {beside.name} says: SHA-256 {found}; fetch it again, or remove {beside.name}"
        )


def is_release(path: Path) -> bool:
    """Return whether a file has the name of an open_clip release, which carries the beginning of its SHA-256."""
    return _RELEASE_DIGEST.search(path.name) is not None


@contextlib.contextmanager
def hub_access() -> Iterator[None]:
    """Restrict the hub client to its cache if the hub is unreachable; otherwise it retries for a minute.

    Behind a proxy the local name server need not know the hub, so there the client is not restricted.
    """
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    reachable = True
    if not uses_proxy(endpoint.scheme, endpoint.hostname or ""):
        try:
            socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
        except OSError:
            reachable = False
    with contextlib.nullcontext() if reachable else _offline():
        yield


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def uses_proxy(scheme: str, host: str) -> bool:
    """Return whether requests to a host go through a proxy (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``)."""
    proxies = urllib.request.getproxies()
    return bool(proxies.get(scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(host)
