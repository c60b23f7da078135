"""Errors of the ingress itself, in the shape that the clients of a path expect.

Before an answer has begun an error is a JSON body with a status; in a stream it is the last event.
"""

from collections.abc import Mapping

from ..encode import DONE, to_event, to_json, to_named_event
from ..errors import ApiError
from ..protocol.anthropic.message_errors import error_body as anthropic_body
from ..protocol.heading import fresh_id
from ..protocol.tgi.reply import error_body as tgi_body
from .call import Head

_TGI = ("/", "/generate", "/generate_stream")


def error_answer(path: str, error: ApiError) -> tuple[Head, bytes]:
    """The head and the body of an error's answer."""
    status, body = _shaped(path, error)
    headers = [("content-type", "application/json"), *error.headers.items()]
    return Head(status, headers), to_json(body)


def error_events(path: str, error: ApiError) -> bytes:
    """What ends a stream."""
    _, body = _shaped(path, error)
    if path.startswith("/v1/messages"):
        return to_named_event("error", body)
    if path.startswith("/v1/responses"):
        full = error.envelope()["error"]
        brief = {name: full[name] for name in ("code", "message", "param")}
        return to_named_event("error", {"type": "error", **brief, "error": full})
    return to_event(body) if path in _TGI else to_event(body) + DONE


def _shaped(path: str, error: ApiError) -> tuple[int, Mapping[str, object]]:
    if path.startswith("/v1/messages"):
        return anthropic_body(error, fresh_id("req_"))
    return tgi_body(error) if path in _TGI else (error.status, error.envelope())
