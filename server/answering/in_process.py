"""Requests from within the server: a line of a batch takes the same route as a request that came over HTTP.

Such a request has no connection. Its sequences are background ones, which make way for those of clients, and
in the threads and engines it counts as a client of its own.
"""

from dataclasses import dataclass
from typing import Any, cast

from sanic import HTTPResponse
from sanic.compat import Header

from ..encode import to_json
from ..endings import CutShort
from ..errors import as_api_error
from .context import ApiRequest, App
from .error_answer import error_answer


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it would be sent. `retry_after`: seconds, if the request may succeed later."""

    status: int
    request_id: str
    body: bytes
    retry_after: float | None


class _NoConnection:
    """In place of a connection: nothing can be cut off."""

    lost_by: CutShort = "client_gone"

    def cut_off(self) -> None:
        """Does nothing."""


class InProcessRequest(ApiRequest):
    """A request without a connection."""

    background = True

    def __init__(self, app: App, url: str, body: bytes, key_id: str) -> None:
        """A POST of JSON, by the owner of the key `key_id`."""
        head = Header({"content-type": "application/json"})
        super().__init__(url.encode(), head, "1.1", "POST", cast(Any, None), app)
        self.body = body
        self.key_id = key_id

    @property
    def client(self) -> str:
        return f"batches of {self.key_id}"

    @property
    def connection(self) -> Any:
        return _NoConnection()

    def watch_for_disconnect(self) -> None:
        """Does nothing."""


async def answer_in_process(app: App, url: str, body: bytes, key_id: str) -> Answer:
    """The answer of the route at `url`; never raises an error that a client would receive as an answer.

    To cancel it aborts its sequences.
    """
    request = InProcessRequest(app, url, body, key_id)
    try:
        _, handler, _ = app.router.get(url, "POST", None)
        response = cast(HTTPResponse, await cast(Any, handler)(request))
        return Answer(response.status, request.reference, response.body or b"", None)
    except Exception as error:
        request.note_failure(error)
        found = as_api_error(error, "POST", url)
        status, content = error_answer(request, found)
        later = found.headers.get("retry-after")
        return Answer(status, request.reference, to_json(content), None if later is None else float(later))
