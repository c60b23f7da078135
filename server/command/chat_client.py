"""A small client of our own API for the terminal: streams a reply's text with only the standard library."""

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from .. import exit_codes
from ..exit_codes import Failed
from ..keys import is_plain

_TIMEOUT_SECONDS = 600.0
Message = dict[str, str]


class ChatClient:
    """Talks to one OpenAI-compatible server."""

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
        self._url = url
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._place = parts.netloc
        self._base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"

    def model(self) -> str:
        """The first model in the server's list.

        Raises:
          Failed: no server answers.
        """
        with closing(self._connect()) as connection:
            return json.load(self._ask(connection, "GET", "/models"))["data"][0]["id"]

    def reply(self, model: str, messages: list[Message]) -> Generator[str, None, None]:
        """Yields the pieces of a reply's text as they arrive. Closing the generator early ends the request.

        Raises:
          Failed: no server answers, it refuses the request, or the reply breaks off.
        """
        body = {"model": model, "messages": messages, "stream": True}
        with closing(self._connect()) as connection:
            response = self._ask(connection, "POST", "/chat/completions", body)
            for chunk in self._chunks(response):
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""

    def _connect(self) -> HTTPConnection:
        return self._class(self._place, timeout=_TIMEOUT_SECONDS)

    def _ask(
        self, connection: HTTPConnection, method: str, path: str, body: dict[str, Any] | None = None
    ) -> HTTPResponse:
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._base + path, content, self._headers)
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            raise Failed(f"no answer from {self._url}: {error}", exit_codes.PORT_TAKEN) from error
        if response.status != 200:
            raise _refusal(response.read(), response.status)
        return response

    def _chunks(self, response: HTTPResponse) -> Iterator[dict[str, Any]]:
        try:
            for line in response:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    return
                if line.startswith(b"data: "):
                    yield _checked(data)
        except (OSError, HTTPException) as error:
            raise Failed(f"the reply broke off: {error}", exit_codes.ENGINE_LOST) from error
        raise Failed("the reply broke off", exit_codes.ENGINE_LOST)


def _checked(data: bytes) -> dict[str, Any]:
    chunk = json.loads(data)
    if "error" in chunk:
        raise Failed(chunk["error"]["message"], exit_codes.ENGINE_LOST)
    return chunk


def _refusal(body: bytes, status: int) -> Failed:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "no reason given"
    return Failed(f"the server answered {status}: {message}", exit_codes.PORT_TAKEN)
