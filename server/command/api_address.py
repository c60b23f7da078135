"""The address of an OpenAI-compatible server, and connections to it with only the standard library."""

import json
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from .. import exit_codes
from ..exit_codes import Failed
from ..quotas.keys_file import is_plain

_TIMEOUT_SECONDS = 600.0


class Unready(Failed):
    """The server accepts the key, but no requests at the moment: it is loading, or shuts down."""


class ApiAddress:
    """One server.

    Attributes:
      url: as it was given. headers: those of every request.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        """Opens no connection yet.

        Args:
          url: with or without `/v1`. key: the API key to send; None if the server needs none.

        Raises:
          Failed: not an HTTP URL, or a key with characters that a header cannot carry.
        """
        if not is_plain(key or ""):
            raise Failed("the API key has a character that is not visible ASCII", exit_codes.USAGE)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failed(
                f"{url!r} is not a URL; expected one such as http://127.0.0.1:8000", exit_codes.USAGE
            )
        self.url = url
        self.headers = {"content-type": "application/json"}
        if key:
            self.headers["authorization"] = f"Bearer {key}"
        self._class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._place = parts.netloc
        self._base = parts.path.rstrip("/").removesuffix("/v1")

    def connect(self, timeout: float = _TIMEOUT_SECONDS) -> HTTPConnection:
        """A connection, opened by its first request; `timeout`: the longest silence, in seconds."""
        return self._class(self._place, timeout=timeout)

    def path(self, route: str) -> str:
        """The path of a route such as `/v1/models`."""
        return self._base + route

    def ask(self, connection: HTTPConnection, method: str, route: str, body: Any = None) -> HTTPResponse:
        """The answer to a request with a JSON body.

        Raises:
          Failed: no server answers, or its answer is an error. Unready: it is 503.
        """
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self.path(route), content, self.headers)
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            raise Failed(f"no answer from {self.url}: {error}", exit_codes.PORT_TAKEN) from error
        if response.status != 200:
            raise _refusal(response.read(), response.status)
        return response

    def model(self) -> str:
        """The first model in the server's list. Raises Failed: see `ask`."""
        with closing(self.connect()) as connection:
            return json.load(self.ask(connection, "GET", "/v1/models"))["data"][0]["id"]


def _refusal(body: bytes, status: int) -> Failed:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "no reason given"
    kind = Unready if status == HTTPStatus.SERVICE_UNAVAILABLE else Failed
    return kind(f"the server answered {status}: {message}", exit_codes.PORT_TAKEN)
