"""Service settings: flags of `clipspect serve`, and `args` of an application in Ray Serve's config file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from clipspect.config import MODEL, REFERENCES, DetectorConfig, check_bounds, option
from clipspect.errors import UsageError, refuse_unknown
from clipspect.server.limits import SAFETY, Limits
from clipspect.types import plural

API_KEY_VARIABLE = "CLIPSPECT_API_KEY"
LEAST_KEY = 16
SCALE = "Scale"
DEFAULT_MODELS = ("tiny",)
SCORING_CALLS = 2
"""Calls that score, for each replica: one being scored, and the next one ready."""
OTHER_CALLS = 2
"""Calls that a replica answers beside those that score."""
DETECTOR_OPTIONS = ("weights", "image_size", "device", "precision", "aspect", "tile", "bit_depth", "domain")
"""Fields of :class:`DetectorConfig` that a service has as settings."""
REMOVED = {
    "batch_wait_ms": "a request is sent at once, and those that arrive meanwhile together; leave it out"
}
"""Setting of an earlier version → what to do instead; the command line reads it too."""


def parse_paths(texts: Sequence[str]) -> tuple[Path, ...]:
    """Return texts as paths."""
    return tuple(map(Path, texts))


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Settings of a service. Each option has its help text, flag and bounds here and nowhere else.

    Raises:
        UsageError: an impossible value, or two profiles of one product.
        ProfileError: a profile that gives the models cannot be read.
    """

    models: tuple[str, ...] = option(
        (), "A model that may be asked for. Repeatable, the first is the default.", "--model", MODEL,
        repeatable=True, parse=tuple, absent="those of the profiles, else tiny",
    )  # fmt: skip
    """Empty when created = the models of ``profiles``, else :data:`DEFAULT_MODELS`; never empty afterwards."""
    config: DetectorConfig = DetectorConfig()
    """Options of every model's detectors, of which a service has :data:`DETECTOR_OPTIONS`."""
    references: Path = option(
        Path("clipspect-references"), "Folder of kept references.", "--references", REFERENCES, Path
    )
    """On a cluster all nodes must share it, and ``products`` too."""
    products: Path = option(
        Path("clipspect-products"), "Folder of product profiles.", "--products", REFERENCES, Path
    )
    profiles: tuple[Path, ...] = option(
        (), "Serve a product profile under the name of its file. Repeatable.",
        "--profile", REFERENCES, repeatable=True, parse=parse_paths,
    )  # fmt: skip
    """Absolute paths, stored each time the service starts, in place of earlier products of these names."""
    replicas: int = option(1, "Copies of the models.", "--replicas", SCALE, int, at_least=1)
    """Each is a process."""
    cpus: float = option(
        1, "CPUs of each replica; another number than 1 needs Ray.", "--cpus", SCALE, float, above=0
    )
    gpus: float = option(0, "GPUs of each replica; a share of one needs Ray.", "--gpus", SCALE, float)
    batch: int = option(16, "Maximum number of images scored together.", "--batch", SCALE, int, at_least=1)
    """A request with more images is sent alone."""
    queue: int = option(64, "Requests that may wait; more get 429.", "--queue", SCALE, int, at_least=0)
    """In addition to those being scored."""
    time_limit: float = option(60, "Seconds for one request.", "--time-limit", SAFETY, float, above=0)
    """From a request's first byte to its response."""
    api_key_file: Path | None = option(
        None, "Ask for a key of this file, one per line, name: key.", "--api-key-file", SAFETY, Path,
        absent=f"${API_KEY_VARIABLE}, or none",
    )  # fmt: skip
    decision_log: Path | None = option(
        None, "Append every decision to this file, without images.", "--decision-log", SAFETY, Path
    )
    limits: Limits = Limits()
    has_key: bool = True
    """Whether an API key that is set is required; the page has none."""

    def __post_init__(self) -> None:
        """Check the settings, and fill in the models."""
        check_bounds(self)
        object.__setattr__(self, "profiles", tuple(path.resolve() for path in self.profiles))
        _check_product_names(self.profiles)
        object.__setattr__(self, "models", self.models or _models_of(self.profiles) or DEFAULT_MODELS)
        if self.gpus < 0:
            raise UsageError(f"gpus={self.gpus!r}: give 0 or more")
        if self.config.precision == "auto":
            raise UsageError(
                "precision=auto: name one; replicas on different hardware would return different scores"
            )

    @property
    def needs_ray(self) -> bool:
        """Return whether these settings need Ray: several replicas, or a share of the CPUs or GPUs."""
        return self.replicas > 1 or self.cpus != 1 or self.gpus not in (0, 1)

    @property
    def detector(self) -> DetectorConfig:
        """Return the options of every model's detectors, with the service's batches and limits."""
        return self.config.replace(batch_size=self.batch, max_pixels=self.limits.pixels)

    @property
    def ongoing(self) -> int:
        """Calls that one replica holds at once: those that score, and some for probes, references and products."""
        return SCORING_CALLS + OTHER_CALLS

    @property
    def admitted(self) -> int:
        """Requests held at once in total; further requests are refused before their body is read.

        The calls that score hold at most one request for each image, and ``queue`` further requests may wait.
        """
        return self.replicas * SCORING_CALLS * self.batch + self.queue

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


def read_settings(values: Mapping[str, Any]) -> ServiceSettings:
    """Return the settings that a Ray Serve config file gives as plain values.

    Args:
        values: fields of :class:`ServiceSettings` but ``config``, whose :data:`DETECTOR_OPTIONS` are given beside them;
            ``limits`` holds fields of :class:`Limits`.

    Raises:
        UsageError: an unknown name, or a value that is impossible or of another type.
    """
    detector = get_type_hints(DetectorConfig, localns={"Method": Any})
    own = get_type_hints(ServiceSettings)
    del own["config"]
    kinds = {**own, **{name: detector[name] for name in DETECTOR_OPTIONS}, "limits": dict[str, Any]}
    read = _read(values, kinds)
    options = {name: read.pop(name) for name in DETECTOR_OPTIONS if name in read}
    limits = Limits(**_read(read.pop("limits", {}), get_type_hints(Limits), "limits."))
    return ServiceSettings(**read, config=DetectorConfig(**options), limits=limits)


def _read(values: Mapping[str, Any], kinds: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values as their types. Raises UsageError."""
    from pydantic import TypeAdapter, ValidationError

    read = {}
    for name, value in values.items():
        if name in REMOVED:
            raise UsageError(f"{prefix}{name} was removed: {REMOVED[name]}")
        refuse_unknown([name], list(kinds), "setting", prefix)
        try:
            read[name] = TypeAdapter(kinds[name]).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{prefix}{name}={value!r}: {error.errors()[0]['msg']}") from None
    return read


def _check_product_names(profiles: Sequence[Path]) -> None:
    """Raise UsageError for two files that name one product."""
    if not profiles:
        return
    from clipspect.profile import SUFFIX

    seen: dict[str, Path] = {}
    for path in profiles:
        first = seen.setdefault(path.name.removesuffix(SUFFIX), path)
        if first is not path:
            raise UsageError(
                f"{first} and {path} have one file name, which names the product; rename one of them"
            )


def _models_of(profiles: Sequence[Path]) -> tuple[str, ...]:
    """Return the models of profiles, each once. Raises ProfileError."""
    if not profiles:
        return ()
    from clipspect.profile import read_profile

    return tuple(dict.fromkeys(read_profile(path).backbone.model for path in profiles))


def _strong(key: str) -> str:
    if len(key) < LEAST_KEY:
        raise UsageError(f"the API key has {plural(len(key), 'character')}; use at least {LEAST_KEY}")
    return key
