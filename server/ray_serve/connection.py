"""`Connection`: the client's side of one request, as ASGI messages."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import ApiError
from .call import Headers
from .error_shapes import error_answer, error_events

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_WITHOUT_BODY = (204, 304)


class Connection:
    """What has been sent to one client."""

    def __init__(self, send: Send, method: str, path: str) -> None:
        """Sends nothing yet."""
        self._send, self._method, self._path = send, method, path
        self._begun = False

    async def head(self, status: int, headers: Headers) -> None:
        """Begins an answer of unknown length."""
        self._begun = True
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def body(self, data: bytes) -> None:
        """Sends a part of the answer at once."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def whole(self, status: int, headers: Headers, data: bytes) -> None:
        """Sends an answer in one piece."""
        if self._method != "HEAD" and status not in _WITHOUT_BODY:
            headers = [*headers, ("content-length", str(len(data)))]
        await self.head(status, headers)
        await self.body(data)

    async def fail(self, error: ApiError) -> None:
        """Answers with an error, or ends a stream with it."""
        if self._begun:
            await self.body(error_events(self._path, error))
        else:
            head, data = error_answer(self._path, error)
            await self.whole(head.status, head.headers, data)

    async def end(self) -> None:
        """Ends the answer."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
