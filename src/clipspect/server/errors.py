"""The service's errors in one JSON format, and the mapping from clipspect's exceptions to HTTP statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipspect.errors import (
    ClipspectError,
    ImageError,
    ProfileError,
    ReferencesError,
    ResultsError,
    UsageError,
    WeightsError,
)

RETRY_AFTER_S = 1
"""Value of the Retry-After header."""
_RETRYABLE = (429, 503)
_STATUSES: Sequence[tuple[type[ClipspectError], int, str]] = (
    (UsageError, 422, "impossible_request"),
    (ImageError, 422, "unreadable_image"),
    (ReferencesError, 422, "unusable_references"),
    (ProfileError, 422, "unusable_profile"),
    (WeightsError, 500, "weights"),
    (ResultsError, 500, "storage"),
)


class ServiceError(ClipspectError):
    """Error that refuses a request, with its HTTP status."""

    def __init__(
        self, status: int, code: str, message: str, details: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Set the error's fields. ``code`` is for programs, ``message`` for people; ``details`` name single fields."""
        super().__init__(status, code, message, details)
        self.status, self.code, self.message, self.details = status, code, message, details
        self.challenge = "Bearer"
        """Scheme that a 401 response names in WWW-Authenticate."""

    def __str__(self) -> str:
        """The message."""
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Return the HTTP headers for the status."""
        if self.status == 401:
            return {"WWW-Authenticate": self.challenge}
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status in _RETRYABLE else {}

    def body(self) -> dict[str, Any]:
        """Return the error as a JSON-serializable body."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "retryable": self.status in _RETRYABLE,
                "details": list(self.details),
            }
        }


def internal_error() -> ServiceError:
    """Return a generic 500 response; details go to the log."""
    return ServiceError(500, "internal", "internal error of the service; see its log")


def service_error(error: ClipspectError) -> ServiceError:
    """Return the service error for an exception of clipspect."""
    if isinstance(error, ServiceError):
        return error
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            return ServiceError(status, code, str(error))
    return ServiceError(500, "internal", str(error))
