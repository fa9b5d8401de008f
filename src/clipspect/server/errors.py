"""Every error the service answers with, in one shape, and the one place that turns clipspect's errors into statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipspect.errors import (
    ClipspectError,
    ImageError,
    ReferencesError,
    ResultsError,
    UsageError,
    WeightsError,
)

RETRY_AFTER_S = 1
"""What a refused client is told to wait."""
_RETRYABLE = (429, 503)
_STATUSES: Sequence[tuple[type[ClipspectError], int, str]] = (
    (UsageError, 422, "impossible_request"),
    (ImageError, 422, "unreadable_image"),
    (ReferencesError, 422, "unusable_references"),
    (WeightsError, 500, "weights"),
    (ResultsError, 500, "storage"),
)


class ServiceError(ClipspectError):
    """A request that is not answered, with its HTTP status."""

    def __init__(
        self, status: int, code: str, message: str, details: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """``code`` is for machines, ``message`` for people; ``details`` name single fields."""
        super().__init__(status, code, message, details)
        self.status, self.code, self.message, self.details = status, code, message, details

    def __str__(self) -> str:
        """The message."""
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status in _RETRYABLE else {}

    def body(self) -> dict[str, Any]:
        """The one shape of errors."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "retryable": self.status in _RETRYABLE,
                "details": list(self.details),
            }
        }


def internal_error() -> ServiceError:
    """What is said of a bug. What went wrong is for the log, not for strangers."""
    return ServiceError(500, "internal", "an error of the service itself; its log says more")


def service_error(error: ClipspectError) -> ServiceError:
    """The refusal that says an error of clipspect over HTTP."""
    if isinstance(error, ServiceError):
        return error
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            return ServiceError(status, code, str(error))
    return ServiceError(500, "internal", str(error))
