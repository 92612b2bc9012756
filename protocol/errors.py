"""The error tree: every failure a user can see has a code, an HTTP status and a word on retrying.

Errors cross the wire as maps (`to_wire`, `from_wire`) and reach HTTP clients as OpenAI's
error body. An unknown code coming from a newer peer becomes a plain `UmlError` with its status.
"""

from __future__ import annotations

from typing import Any, ClassVar


class UmlError(Exception):
    """Base of all errors that have a meaning for a user.

    code: stable machine-readable word. status: HTTP status. retryable: the same request may
    succeed later without a change. type: OpenAI's `error.type`. param: the offending field.
    retry_after_s: when to come back, if known. detail: extra facts for `/status` and logs.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.detail = detail or {}

    def to_wire(self) -> dict[str, Any]:
        """The map that `from_wire` turns back into an equal error. What UTF-8 has no bytes for
        (the odd file name) becomes a question mark: an error can always be said."""
        return {
            "code": self.code,
            "status": self.status,
            "message": self.message.encode("utf-8", "replace").decode(),
            "param": self.param,
            "retry_after_s": self.retry_after_s,
            "detail": self.detail,
        }

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's error body. Source: OpenAI API reference, error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(UmlError):
    code, status, type = "invalid_request", 400, "invalid_request_error"


class TaskNotSupported(BadRequest):
    """The model cannot do what was asked (embeddings of a chat model, say)."""

    code = "task_not_supported"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class Unauthorized(UmlError):
    code, status, type = "invalid_api_key", 401, "authentication_error"


class Forbidden(UmlError):
    code, status, type = "forbidden", 403, "permission_error"


class NotFound(UmlError):
    code, status, type = "not_found", 404, "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(UmlError):
    code, status, type = "method_not_allowed", 405, "invalid_request_error"


class Conflict(UmlError):
    """Pinned, in use, or in the way of something that is."""

    code, status, type = "conflict", 409, "invalid_request_error"


class TooLarge(UmlError):
    code, status, type = "too_large", 413, "invalid_request_error"


class UnsupportedMediaType(UmlError):
    code, status, type = "unsupported_media_type", 415, "invalid_request_error"


class DoesNotFit(UmlError):
    """Does not fit even on the empty machine: asking again is pointless."""

    code, status, type = "does_not_fit", 422, "invalid_request_error"


class InvalidModel(UmlError):
    """The file is corrupt, truncated or of a kind nobody here can read."""

    code, status, type = "invalid_model", 422, "invalid_request_error"


class QueueFull(UmlError):
    code, status, type, retryable = "queue_full", 429, "rate_limit_error", True


class RateLimited(UmlError):
    code, status, type, retryable = "rate_limited", 429, "rate_limit_error", True


class InternalError(UmlError):
    """A bug of ours or of a backend."""


class LoadFailed(UmlError):
    code = "load_failed"


class BackendNotInstalled(UmlError):
    code, status = "backend_not_installed", 501


class WorkerDied(UmlError):
    code, status, retryable = "worker_died", 502, True


class Quarantined(WorkerDied):
    """Workers died while they had this very request: it is not given another."""

    code, retryable = "quarantined", False


class ProtocolError(UmlError):
    """The peer broke the rules of the wire; the connection is unusable."""

    code, status = "protocol_error", 502


class Unavailable(UmlError):
    """Loading, no capacity, backing off."""

    code, status, retryable = "unavailable", 503, True


class ShuttingDown(Unavailable):
    code = "shutting_down"


class Cancelled(UmlError):
    """Cut by the caller, by `unload --force` or by shutdown."""

    code, status, retryable = "cancelled", 503, True


class Stalled(UmlError):
    code, status, retryable = "stalled", 504, True


def _tree(cls: type[UmlError]) -> dict[str, type[UmlError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found.update(_tree(sub))
    return found


_BY_CODE = _tree(UmlError) | {"internal_error": InternalError}


def from_wire(data: Any) -> UmlError:
    """The error that `to_wire` described; never raises, whatever `data` is."""
    if not isinstance(data, dict):
        return InternalError(f"malformed error: {str(data)[:200]}")
    cls = _BY_CODE.get(str(data.get("code")))
    if cls is None:
        retry = isinstance(data.get("status"), int) and data["status"] in (429, 502, 503, 504)
        cls = Unavailable if retry else InternalError
    param, after, detail = data.get("param"), data.get("retry_after_s"), data.get("detail")
    return cls(
        str(data.get("message") or cls.code),
        param=param if isinstance(param, str) else None,
        retry_after_s=float(after) if isinstance(after, (int, float)) else None,
        detail=detail if isinstance(detail, dict) else None,
    )
