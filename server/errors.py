"""The errors that HTTP clients see: one JSON format, one exception tree, and the statuses of other errors.

An error body is `{"error": {"message", "type", "param", "code"}}` with all four keys, from any source: the
parser (`BadRequest`), the engine, Sanic or a defect of the server. Other protocols have shapes of their own,
which `answering/error_answer.py` chooses. A body never contains a path, a traceback
or text from a failed component; internal details go to the log.

    DistaffError
    └── ApiError                a status, a body, and optional headers
        ├── BadRequest          400: the request is invalid
        │   └── PromptTooLong   the prompt alone is more than is accepted
        ├── Unauthorized        401: no key, or an unknown one
        ├── ModelNotFound       404: the model is not served here
        ├── UnsupportedEncoding 415: a compressed body
        ├── RateLimited         429: the key has no quota left now
        └── Unavailable         503: the same request may succeed later
"""

import contextlib
import math
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, cast

from sanic import HTTPResponse, Request
from sanic.exceptions import MethodNotAllowed, NotFound, SanicException
from sanic.handlers import ErrorHandler
from sanic.http import Http

from ..model.errors import DistaffError
from ..runtime.request import EngineFailed, InvalidRequest, NotReady, Overloaded
from .encode import to_json
from .engine_client import ShutDown

SORRY = "The server had an error while processing your request. Sorry about that!"
OVERLOADED = "The engine is currently overloaded, please try again later"
NOT_READY = "The model is not ready to serve requests, please try again later"
CONTEXT_EXCEEDED = "context_length_exceeded"
SHUTTING_DOWN = "The server is shutting down, please try again later"

_RETRY_OVERLOADED = 1
_RETRY_SHUT_DOWN = 5


class RenderingOverloaded(Overloaded):
    """No process is free, or can be started, to render a conversation."""


class ApiError(DistaffError):
    """An error with the status and the body of its HTTP answer.

    Attributes:
      answer: the status and the body in the request's protocol, if they are decided already.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}
        self.answer: tuple[int, dict[str, Any]] | None = None

    def envelope(self) -> dict[str, Any]:
        """The body of the answer, which is also the data of an error event in a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """400: the request is invalid."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code)


class PromptTooLong(BadRequest):
    """400: the prompt in the parameter `param` has more `tokens` than the `limit`."""

    def __init__(self, message: str, param: str, *, tokens: int, limit: int) -> None:
        super().__init__(message, param, CONTEXT_EXCEEDED)
        self.tokens = tokens
        self.limit = limit


class Unauthorized(ApiError):
    """401: no key, or an unknown one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(401, message, code=code, headers={"www-authenticate": "Bearer"})


class ModelNotFound(ApiError):
    """404: the model is not served here. The name is truncated, so that the answer stays small."""

    def __init__(self, name: str) -> None:
        message = f"The model `{name[:64]}` does not exist or you do not have access to it."
        super().__init__(404, message, code="model_not_found")


class UnsupportedEncoding(ApiError):
    """415: the body is compressed, or declared so; the answer lists accepted ones (RFC 9110, 15.5.16)."""

    def __init__(self, encoding: str) -> None:
        message = f"Unsupported content encoding: '{encoding[:64]}'. Send the body as it is."
        headers = {"accept-encoding": "identity"}
        super().__init__(415, message, code="unsupported_content_encoding", headers=headers)


class RateLimited(ApiError):
    """429: the key has no quota left now. The same request is accepted in `seconds`, if no other comes."""

    def __init__(self, message: str, kind: str, seconds: float) -> None:
        """`kind`: what is limited, for the error's type."""
        milliseconds = math.ceil(seconds * 1000)
        headers = {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(milliseconds)}
        again = f"Please try again in {milliseconds / 1000:g}s."
        super().__init__(429, f"{message} {again}", type=kind, code="rate_limit_exceeded", headers=headers)
        self.seconds = seconds


class Unavailable(ApiError):
    """503: the same request may succeed after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int, code: str | None = None) -> None:
        seconds = str(min(max(retry_after, 1), 60))
        super().__init__(503, message, type="server_error", code=code, headers={"retry-after": seconds})


def as_api_error(error: BaseException, method: str = "", path: str = "") -> ApiError:
    """The error that a client receives for `error`."""
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            return BadRequest(str(error), error.param)
        case Overloaded():
            return Unavailable(OVERLOADED, math.ceil(error.retry_after), "server_overloaded")
        case NotReady():
            return Unavailable(NOT_READY, math.ceil(error.retry_after))
        case ShutDown():
            return Unavailable(SHUTTING_DOWN, _RETRY_SHUT_DOWN, "server_shutting_down")
        case EngineFailed():
            return ApiError(500, SORRY, type="server_error", code="engine_error")
        case SanicException() | CancelledError():
            return _as_transport_error(error, method, path)
    return ApiError(500, SORRY, type="server_error")


def _as_transport_error(error: SanicException | CancelledError, method: str, path: str) -> ApiError:
    """An error of the HTTP layer."""
    status = getattr(error, "status_code", None) or 500
    if isinstance(error, NotFound):
        return ApiError(404, f"Invalid URL ({method} {path[:256]})")
    if isinstance(error, MethodNotAllowed):
        return _method_not_allowed(error)
    if status == 413:
        return ApiError(413, "The request is too large.", code="request_too_large")
    if status == 408:
        return ApiError(408, "The request was not received in time.", code="request_timeout")
    if status == 503:
        return Unavailable(OVERLOADED, _RETRY_OVERLOADED)
    if 400 <= status < 500:
        return ApiError(status, f"{HTTPStatus(status).phrase}.")
    return ApiError(status, SORRY, type="server_error")


def _method_not_allowed(error: MethodNotAllowed) -> ApiError:
    allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    methods = " and ".join(method for method in allow.split(", ") if method not in ("HEAD", "OPTIONS"))
    message = f"Only {methods} requests are accepted."
    return ApiError(405, message, code="method_not_supported", headers={"allow": allow})


class ApiErrorHandler(ErrorHandler):
    """Answers every exception, in the format that `shape` returns for a request: a status and a body."""

    def __init__(self, shape: Callable[[Any, ApiError], tuple[int, dict[str, Any]]]) -> None:
        super().__init__()
        self._shape = shape

    def default(self, request: Request, exception: BaseException) -> HTTPResponse:
        if isinstance(exception, MethodNotAllowed) and not (exception.headers or {}).get("Allow"):
            exception.headers = {"Allow": ", ".join(_methods_of(request))}
        error = as_api_error(exception, request.method, _path(request))
        stream = cast(Http | None, request.stream)
        if error.status in (408, 413, 503) and stream is not None and stream.request_body:
            # Sanic would wait without a limit for the rest of a body that never arrives.
            stream.request_body = None
            stream.keep_alive = False
        status, body = error.answer or self._shape(request, error)
        return HTTPResponse(to_json(body), status, error.headers, content_type="application/json")

    @staticmethod
    def log(request: Request, exception: BaseException) -> None:
        """Logs nothing: Sanic's own log line would contain the URL and a traceback."""


def _methods_of(request: Request) -> Iterator[str]:
    """The methods of a path with a placeholder and several routes, of which Sanic's error says nothing."""
    for method in ("DELETE", "GET", "HEAD", "POST"):
        with contextlib.suppress(SanicException):
            request.app.router.get(request.path, method, request.headers.get("host"))
            yield method


def _path(request: Request) -> str:
    return request.raw_url.split(b"?", 1)[0].decode("ascii", "replace")
