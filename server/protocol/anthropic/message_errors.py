"""Errors in Anthropic's shape: its types, and its status for overload."""

from typing import Any

from ...errors import ApiError, PromptTooLong

OVERLOADED = 529
"""Anthropic's status where OpenAI has 503."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    OVERLOADED: "overloaded_error",
}


def error_body(error: ApiError, request_id: str) -> tuple[int, dict[str, Any]]:
    """The status and the body of an error."""
    status = OVERLOADED if error.status == 503 else error.status
    kind = _TYPES.get(status, _TYPES[400] if status < 500 else _TYPES[500])
    told = {"type": kind, "message": _message(error)}
    return status, {"type": "error", "error": told, "request_id": request_id}


def _message(error: ApiError) -> str:
    """The message, with the parameter's name: the shape has no other place for it."""
    if isinstance(error, PromptTooLong):  # agents recognise these words, and shorten the conversation
        return f"prompt is too long: {error.tokens} tokens > {error.limit} maximum"
    param = error.param
    return error.message if param is None or param in error.message else f"{param}: {error.message}"
