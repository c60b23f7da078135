"""Requests the lines of a batch from a server, each until it has an answer that is worth recording.

Overload and lost connections are not: such a request is sent again after the time that the server names, or
after pauses that double. Only then they are recorded.
"""

import json
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse

from ..batches.lines import Line
from ..batches.results import Result, answered, failed
from .api_address import ApiAddress

RETRIED = frozenset({429, 502, 503, 504, 529})
"""Overload and shutdown, also as gateways report them."""
ATTEMPTS = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_SILENCE_SECONDS = 3600.0
"""The longest wait for one answer, as long as a server of ours works on one."""


class LineClient:
    """Sends requests from any number of threads, each on a connection of its own."""

    def __init__(self, address: ApiAddress, pause: Callable[[float], None] = time.sleep) -> None:
        """Opens no connection yet; `pause`: waits for a number of seconds."""
        self._address, self._pause = address, pause
        self._local = threading.local()
        self._open: list[HTTPConnection] = []
        self._closed = False

    def slots(self) -> int | None:
        """The sequences that the server decodes at the same time; None if it does not say."""
        with closing(self._address.connect()) as connection, suppress(OSError, HTTPException, ValueError):
            connection.request("GET", self._address.path("/v1/capabilities"), headers=self._address.headers)
            response = connection.getresponse()
            found = json.load(response).get("slots") if response.status == 200 else None
            return found if isinstance(found, int) and found > 0 else None
        return None

    def ask(self, line: Line) -> Result:
        """The result of a line."""
        for attempt in range(1, ATTEMPTS):
            result, again, retry_after = self._attempt(line)
            if not again or self._closed:
                return result
            self._pause(_pause(attempt, retry_after))
        return self._attempt(line)[0]

    def close(self) -> None:
        """Closes all connections, so that the server ends the requests in progress."""
        self._closed = True
        for connection in list(self._open):
            open_socket = connection.sock  # its thread may set that to None
            if open_socket is not None:
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
                open_socket.close()

    def _attempt(self, line: Line) -> tuple[Result, bool, str | None]:
        """The result of one request, whether to send it again, and when, if the server says so."""
        try:
            response, body = self._sent(line)
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            return failed(line, "connection_lost", f"No answer from the server: {reason}"), True, None
        headers = response.headers
        result = answered(line, response.status, headers.get("x-request-id", ""), body)
        return result, response.status in RETRIED, headers.get("retry-after")

    def _sent(self, line: Line) -> tuple[HTTPResponse, bytes]:
        if self._closed:
            raise ConnectionError("the client is closed")
        connection = self._connection()
        try:
            path = self._address.path(line.url)
            connection.request("POST", path, line.body, self._address.headers)
            response = connection.getresponse()
            return response, response.read()
        except BaseException:
            connection.close()  # the next request opens it again
            raise

    def _connection(self) -> HTTPConnection:
        """This thread's connection."""
        found = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._address.connect(_SILENCE_SECONDS)
            self._open.append(found)
        return found


def _pause(attempt: int, retry_after: str | None) -> float:
    """Seconds before the next attempt: what the server asks for, else doubling, with a random part."""
    if retry_after is not None and retry_after.isdecimal():
        return min(float(retry_after), _LONGEST_PAUSE)
    return min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
