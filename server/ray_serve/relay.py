"""`Relay`: one client's request, answered by whichever replicas it takes.

A request whose replica is lost goes to another one. If the client has had a part of a stream, the next
replica continues it from the stream's marks; a whole answer is passed on only when it is complete, so it is
simply asked for again. Knows neither Ray nor ASGI.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from ..errors import NOT_READY, SORRY, ApiError, Unavailable
from .call import Accepted, Call, Head, Headers, NoReplica, Piece, ReplicaLost
from .marks import MarkedStream

log = logging.getLogger(__name__)

MOST_LOST = 2
"""The number of replicas that may be lost with a request: it may be what ends them."""
_PAUSE_SECONDS = 0.5
"""Between attempts that no replica has accepted, or that a server could not continue yet."""
_RETRY_AFTER = 5
_LEAST_SECONDS = 5.0
"""So long a replica has to accept a request even with `--max-wait 0`, which is about the server's queue."""

Ask = Callable[[Call, float], AsyncGenerator[Piece, None]]
"""Sends a call to a replica, which must accept it within some seconds; raises ReplicaLost and NoReplica."""


class Client(Protocol):
    """The client's side of the connection."""

    async def head(self, status: int, headers: Headers) -> None:
        """Begins a stream."""
        ...

    async def body(self, data: bytes) -> None:
        """Sends a part of a stream."""
        ...

    async def whole(self, status: int, headers: Headers, data: bytes) -> None:
        """Sends an answer in one piece."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits for a replica, in seconds, but `_LEAST_SECONDS` at least.

    Attributes:
      first: before its answer has begun. paused: in the middle of a stream.
    """

    first: float = 30.0
    paused: float = 300.0


class Relay:
    """One request. Call `run` once.

    Attributes:
      begun: whether the client has the head of a stream.
    """

    def __init__(self, ask: Ask, call: Call, client: Client, patience: Patience) -> None:
        """Sends nothing yet."""
        self.begun = False
        self._ask, self._call, self._client, self._patience = ask, call, client, patience
        self._stream = MarkedStream()
        self._replica: str | None = None
        self._lost: list[str] = []
        self._limit = time.monotonic() + max(patience.first, _LEAST_SECONDS)

    async def run(self) -> None:
        """Answers the client.

        Raises:
          ApiError: no replica can answer, or continue the stream.
        """
        while time.monotonic() <= self._limit:
            try:
                return await self._attempt()
            except ReplicaLost as lost:
                self._note(lost)
            except NoReplica:
                break
            if self._replica is None:
                await asyncio.sleep(_PAUSE_SECONDS)
        raise Unavailable(NOT_READY, _RETRY_AFTER)

    async def _attempt(self) -> None:
        """Asks one replica, and passes its answer on."""
        self._replica = None
        call = self._call.again(self._stream.marks, self._lost)
        head, whole = Head(502, ()), list[bytes]()
        async with aclosing(self._ask(call, self._limit - time.monotonic())) as pieces:
            async for piece in pieces:
                match piece:
                    case Accepted(replica):
                        self._replica = replica
                    case Head():
                        head = piece
                        await self._begin(head)
                    case _ if self.begun:
                        await self._pass(self._stream.feed(piece))
                    case _:
                        whole.append(piece)
        if self.begun:
            await self._pass(self._stream.finish())
        else:
            await self._client.whole(head.status, head.headers, b"".join(whole))

    async def _begin(self, head: Head) -> None:
        """Passes on the head of a stream; the head of a whole answer waits for its body.

        Raises:
          ReplicaLost: the server cannot continue the stream yet. ApiError: it never can.
        """
        type = next((value for name, value in head.headers if name.lower() == "content-type"), "")
        if head.status == 200 and type.startswith("text/event-stream"):
            if not self.begun:
                self.begun = True
                await self._client.head(head.status, head.headers)
        elif self.begun and head.status == 503:
            self._replica = None
            raise ReplicaLost("the server does not accept requests now")
        elif self.begun:
            log.error("a stream could not be continued: status %d", head.status)
            raise _failure()

    async def _pass(self, data: bytes) -> None:
        if data:
            await self._client.body(data)

    def _note(self, lost: ReplicaLost) -> None:
        """Records a loss; raises ApiError if the request is not tried again."""
        log.warning("lost replica %s with a request: %s", self._replica, lost)
        self._stream.drop()
        if self._replica is not None:
            self._lost.append(self._replica)
            patience = self._patience.paused if self.begun else self._patience.first
            self._limit = time.monotonic() + max(patience, _LEAST_SECONDS)
        if len(self._lost) >= MOST_LOST:
            raise _failure()


def _failure() -> ApiError:
    return ApiError(500, SORRY, type="server_error", code="engine_error")
