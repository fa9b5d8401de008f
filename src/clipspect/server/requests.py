"""Requests of a service while they are handled: parameters, progress, time limit, and stored references."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import TypedDict

from clipspect.detection import Detection


@dataclass(frozen=True)
class InspectRequest:
    """Parameters of one request, or of one inspection on the page."""

    images: tuple[bytes, ...] = field(repr=False)
    """File contents, already checked against the limits."""
    object: str
    methods: tuple[str, ...]
    model: str
    references: tuple[bytes, ...] | str = field(default=(), repr=False)
    """File contents of reference images, or the id of stored references; empty = none."""
    threshold: float | None = None
    """None = 0.5."""
    product: str = ""
    """Name of a product, whose profile gives object, method, model, references and threshold; empty = none."""
    calibrate: bool = False
    """Whether reference images, from three on, are known-good images that give a threshold too."""


@dataclass(frozen=True)
class Progress:
    """Progress of a request."""

    message: str
    """Description of the current step, for display."""
    detections: tuple[Detection, ...] = ()
    """Detections so far: one per image and method, in order."""
    seconds: float = 0.0
    """Seconds since the request began."""
    done: bool = False
    stage: str = ""
    """Name of the current stage."""
    count: int = 0
    """Images done in this stage."""
    total: int = 0
    """Images of this stage; 0 = unknown."""


class PendingRequest:
    """Request in the queue; it can be cancelled."""

    def __init__(self, request: InspectRequest, seconds: float) -> None:
        """Start the request's time limit, ``seconds`` from now."""
        self.request = request
        self._until = monotonic() + seconds
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Cancel the request."""
        self._given_up.set()

    @property
    def wanted(self) -> bool:
        """Return whether a client is still waiting."""
        return not self._given_up.is_set() and monotonic() < self._until


class Kept(TypedDict):
    """Description of stored references."""

    id: str
    count: int
    object: str
    method: str
    model: str
