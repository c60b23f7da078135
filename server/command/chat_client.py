"""A small client of our own API for the terminal: streams a reply's text with only the standard library."""

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from http.client import HTTPException, HTTPResponse
from typing import Any

from .. import exit_codes
from ..exit_codes import Failed
from .api_address import ApiAddress

Message = dict[str, str]


class ChatClient:
    """Talks to one OpenAI-compatible server."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Opens no connection yet; the arguments and errors are those of `ApiAddress`."""
        self._address = ApiAddress(url, key)

    def model(self) -> str:
        """The first model in the server's list.

        Raises:
          Failed: no server answers.
        """
        return self._address.model()

    def reply(self, model: str, messages: list[Message]) -> Generator[str, None, None]:
        """Yields the pieces of a reply's text as they arrive. Closing the generator early ends the request.

        Raises:
          Failed: no server answers, it refuses the request, or the reply breaks off.
        """
        body = {"model": model, "messages": messages, "stream": True}
        with closing(self._address.connect()) as connection:
            response = self._address.ask(connection, "POST", "/v1/chat/completions", body)
            for chunk in self._chunks(response):
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""

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
