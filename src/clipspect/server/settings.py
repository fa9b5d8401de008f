"""Service settings: flags of `clipspect serve`, and `args` of an application in Ray Serve's config file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from clipspect.config import DetectorConfig
from clipspect.data.transforms import Aspect
from clipspect.errors import UsageError
from clipspect.server.limits import Limits
from clipspect.types import Precision

API_KEY_VARIABLE = "CLIPSPECT_API_KEY"
LEAST_KEY = 16


class ServiceSettings(BaseModel):
    """Frozen, validated settings of a service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(default=("tiny",), min_length=1)
    """Models that requests may name; the first is the default."""
    weights: str | None = None
    image_size: int | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    """A named precision, never "auto": replicas on different hardware would return different scores."""
    tile: int | Literal["square"] | None = None
    aspect: Aspect = "squash"
    bit_depth: int | None = None
    domain: str = "auto"
    references: Path = Path("clipspect-references")
    """Folder of stored references; on a cluster all nodes must share it."""
    products: Path = Path("clipspect-products")
    """Folder of product profiles; on a cluster all nodes must share it."""
    profiles: tuple[Path, ...] = ()
    """Profiles that become products, under their files' names, before the service is ready."""
    decision_log: Path | None = None
    """File that every decision is appended to, without images; None = no log."""
    limits: Limits = Limits()
    replicas: int = Field(default=1, ge=1)
    """Number of replicas, each a process with its own copy of the models."""
    cpus: float = Field(default=1, gt=0)
    """CPUs of each replica."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of each replica."""
    batch: int = Field(default=16, ge=1)
    """Maximum number of requests scored together."""
    batch_wait_ms: float = Field(default=2, ge=0)
    """Maximum wait in milliseconds for a batch to fill."""
    queue: int = Field(default=64, ge=0)
    """Requests that may wait in addition to those being scored; more are refused with 429."""
    time_limit: float = Field(default=60, gt=0)
    """Time limit in seconds from a request's first byte to its response."""
    api_key_file: Path | None = None
    """File with an API key per line, as ``name: key`` or alone. Default: $CLIPSPECT_API_KEY; if that is unset too, no
    key is required."""

    has_key: bool = True
    """Whether an API key that is set is required; the page has none."""

    @property
    def needs_ray(self) -> bool:
        """Return whether these settings need Ray: several replicas, or a share of the CPUs or GPUs."""
        return self.replicas > 1 or self.cpus != 1 or self.gpus not in (0, 1)

    @property
    def detector(self) -> DetectorConfig:
        """Return the options of every model's detectors."""
        names = ("weights", "image_size", "device", "precision", "tile", "aspect", "bit_depth", "domain")
        own = {name: getattr(self, name) for name in names}
        return DetectorConfig(**own, batch_size=self.batch, max_pixels=self.limits.pixels)

    @property
    def ongoing(self) -> int:
        """Requests that one replica holds at once: a batch being scored and the next one filling."""
        return 2 * self.batch

    @property
    def admitted(self) -> int:
        """Requests held at once in total; further requests are refused before their body is read."""
        return self.replicas * self.ongoing + self.queue

    def api_keys(self) -> dict[str, str]:
        """Return name → key that clients may send; empty = none is required.

        Raises:
            UsageError: a file that cannot be read or holds no key, a name given twice, a key that is easily guessed.
        """
        if not self.has_key:
            return {}
        if self.api_key_file is None:
            key = os.environ.get(API_KEY_VARIABLE, "").strip()
            return {"default": _strong(key)} if key else {}
        try:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.api_key_file}: the API keys cannot be read ({error})") from error
        keys: dict[str, str] = {}
        for line in filter(None, (line.strip() for line in lines)):
            name, colon, key = line.rpartition(":")
            name = name.strip() if colon else "default"
            if name in keys:
                raise UsageError(f"{self.api_key_file}: the name {name!r} is given twice; write name: key")
            keys[name] = _strong(key.strip())
        if not keys:
            raise UsageError(f"{self.api_key_file}: holds no API key; write one per line, as name: key")
        return keys


def _strong(key: str) -> str:
    if len(key) < LEAST_KEY:
        raise UsageError(f"the API key has {len(key)} characters; use at least {LEAST_KEY}")
    return key
