"""The reasons why a call ended before its answer was complete, or was refused.

Handles exceptions, neither HTTP nor metrics. Each reason is one word of a closed set, so that the counters,
the finish reasons of choices and a call's log line always agree.
"""

import logging
from typing import Literal, get_args

from sanic.exceptions import ServiceUnavailable

from ..runtime.request import EngineFailed, InvalidRequest, NotReady, Overloaded
from .engine_client import RequestFailed, ShutDown
from .errors import ApiError, RenderingOverloaded

log = logging.getLogger(__name__)

CutShort = Literal[
    "client_gone",
    "client_stalled",
    "engine_lost",
    "shutdown",
    "request_failed",
    "request_invalid",
    "internal_error",
    "timeout",
]
"""`client_gone`: it closed the connection. `client_stalled`: the server closed it, because the client read
nothing for too long, left too much unread, or did not send a whole head in time. `engine_lost`: the engine
was lost with the request. `shutdown`: the time for draining was up. `request_failed`: the engine failed only
this request. `request_invalid`: an accepted request turned out to be impossible. `internal_error`: a defect
of the web process. `timeout`: the answer took longer than the limit."""

Refusal = Literal["overloaded", "rate_limited", "rendering", "not_ready", "draining", "connections"]
"""`overloaded`: the queue is full. `rate_limited`: the key has no quota left. `rendering`: no process is free
for the chat template. `not_ready`: no engine accepts requests. `draining`: the server shuts down.
`connections`: too many are open, and a further one was closed unread."""

Ending = CutShort | Refusal

CUT_SHORT: tuple[CutShort, ...] = get_args(CutShort)
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)

_LONGEST_DETAIL = 200
_LEVELS: dict[Ending, int] = {
    "engine_lost": logging.ERROR,
    "request_failed": logging.ERROR,
    "internal_error": logging.ERROR,
    "shutdown": logging.WARNING,
    "timeout": logging.WARNING,
    "request_invalid": logging.INFO,
}
"""Log levels of the reasons that have a separate log line; refusals and disconnects have none."""


def ending_of(error: Exception, *, draining: bool) -> Ending:
    """The reason for a call that ended with `error`; `draining`: the server shuts down."""
    match error:
        case RenderingOverloaded():
            return "rendering"
        case Overloaded():
            return "overloaded"
        case NotReady():
            return "draining" if draining else "not_ready"
        case ShutDown():
            return "shutdown"
        case RequestFailed():
            return "request_failed"
        case EngineFailed():
            return "engine_lost"
        case InvalidRequest() | ApiError():
            return "request_invalid"
        case ServiceUnavailable():  # Sanic's, for an answer that takes longer than RESPONSE_TIMEOUT
            return "timeout"
    return "internal_error"


def log_ending(reference: str, trace_id: str, ending: Ending, error: BaseException) -> None:
    """Logs why the call `reference` ended early: an engine's message, or the type of another error."""
    names = {"request": reference, **({"trace_id": trace_id} if trace_id else {})}
    level = _LEVELS.get(ending, logging.NOTSET)
    if level:
        detail = str(error)[:_LONGEST_DETAIL] if isinstance(error, EngineFailed) else type(error).__name__
        log.log(level, "%s ended early, %s: %s", reference, ending, detail, extra=names)
    if ending == "internal_error":
        log.debug("%s failed", reference, exc_info=error, extra=names)
