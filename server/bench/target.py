"""The server under load: which route, which model, what a request looks like, and what it says beforehand."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .. import exit_codes
from ..exit_codes import Failed
from .http_client import AnswerBroken, ConnectionFailed, HttpClient
from .record import Record
from .request import measure, refusal

_FETCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how it is asked.

    Attributes:
      client: to reach it. endpoint: the path of completions or chat completions.
      chats: the endpoint takes messages. model: its name in requests.
      extra: further parameters of every request.
    """

    client: HttpClient
    endpoint: str
    chats: bool
    model: str
    extra: Mapping[str, Any]

    def body(self, prompt: str | list[int], output: int) -> bytes:
        """A streamed request for `output` tokens, with the usage at its end."""
        asked = (
            {"messages": [{"role": "user", "content": prompt}], "max_completion_tokens": output}
            if self.chats
            else {"prompt": prompt, "max_tokens": output}
        )
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps({"model": self.model, **asked, **options, **self.extra}).encode()

    async def send(self, body: bytes, record: Record) -> Record:
        """Sends a request and fills its record."""
        return await measure(self.client, self.endpoint, body, record)

    async def tokenize(self, text: str) -> list[int] | None:
        """The tokens of a text without special ones, from vLLM's `/tokenize`; None: the server has none.

        Raises:
          Failed: no connection.
        """
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            status, body = await _fetch(self.client, "/tokenize", json.dumps(asked).encode())
            found = msgspec.json.decode(body, type=_Tokens) if status == 200 else None
        except (AnswerBroken, msgspec.MsgspecError):
            return None
        return found.tokens if found else None

    async def check(self, prompt: str | list[int], output: int) -> None:
        """Sends one request, so that what would fail every request fails at once.

        Raises:
          Failed: it failed.
        """
        record = await self.send(self.body(prompt, output), Record(due=time.perf_counter()))
        if failure := record.failure:
            raise Failed(
                f"{self.client.url}{self.endpoint}: {failure.kind}: {failure.message}", exit_codes.PORT_TAKEN
            )


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def first_model(client: HttpClient) -> str:
    """The first model in the server's list.

    Raises:
      Failed: no server answers, or it has no list of models.
    """
    place = f"{client.url}/v1/models"
    try:
        status, body = await _fetch(client, "/v1/models")
        if status != 200:
            raise Failed(f"{place}: status {status}: {refusal(body)}", exit_codes.PORT_TAKEN)
        return msgspec.json.decode(body, type=_Models).data[0].id
    except (AnswerBroken, msgspec.MsgspecError, IndexError) as error:
        raise Failed(f"{place}: no list of models ({error}); give --model", exit_codes.PORT_TAKEN) from None


async def _fetch(client: HttpClient, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """The status and the whole body of an answer.

    Raises:
      Failed: no connection, or no answer in time. AnswerBroken: the answer ended early.
    """
    try:
        async with asyncio.timeout(_FETCH_SECONDS), client.ask(path, body) as answer:
            return answer.status, await answer.body()
    except TimeoutError:
        message = f"no answer from {client.url}{path} within {_FETCH_SECONDS:.0f} s"
        raise Failed(message, exit_codes.PORT_TAKEN) from None
    except ConnectionFailed as error:
        raise Failed(f"no answer from {client.url}: {error}", exit_codes.PORT_TAKEN) from None
