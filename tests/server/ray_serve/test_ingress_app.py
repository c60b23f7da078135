"""What the ingress does with a request before it asks a replica."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from distaff.server.ray_serve.call import Accepted, Call, Head, Headers, Piece
from distaff.server.ray_serve.ingress_app import IngressApp
from distaff.server.ray_serve.relay import Patience

BODY = {"type": "http.request", "body": b"{}"}


class Asked:
    """An application over one replica, which answers everything; keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._app = IngressApp(self._ask, self._metrics, Patience(1.0, 1.0))

    async def _ask(self, call: Call, seconds: float) -> AsyncIterator[Piece]:
        self.calls.append(call)
        yield Accepted("a")
        yield Head(200, [])
        yield b"{}"

    async def _metrics(self, headers: Headers) -> bytes:
        return b""

    async def request(
        self, method: str, raw_path: str, messages: Sequence[dict[str, Any]] = (BODY,), **scope: Any
    ) -> list[dict[str, Any]]:
        """What the application sends for a request."""
        sent, coming = list[dict[str, Any]](), iter(messages)

        async def receive() -> dict[str, Any]:
            return next(coming)

        async def send(message: Any) -> None:
            sent.append(message)

        whole = {"type": "http", "method": method, "path": raw_path, "raw_path": raw_path.encode()}
        await self._app(whole | {"headers": [], "query_string": b""} | scope, receive, send)
        return sent


@pytest.mark.parametrize(
    ("raw_path", "root", "target"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/distaff/v1/models", "/distaff", "/v1/models"),
        ("/distaff", "/distaff", "/"),
        ("/distaff/%2F@x/y", "/distaff", "/%2F@x/y"),
        ("*", "", "/"),
    ],
)
async def test_a_path_is_passed_on_without_the_prefix(raw_path: str, root: str, target: str) -> None:
    asked = Asked()
    await asked.request("OPTIONS", raw_path, root_path=root)
    assert [call.target for call in asked.calls] == [target]


@pytest.mark.parametrize("rest", ["%2F@127.0.0.1:1/x", "@127.0.0.1/x", ":1@127.0.0.1/x", "x"])
async def test_what_is_no_path_behind_the_prefix_is_not_found(rest: str) -> None:
    """Ray Serve compares the prefix with the decoded path."""
    asked = Asked()
    start, body, _ = await asked.request("GET", f"/distaff{rest}", root_path="/distaff")
    assert start["status"] == 404 and b"Invalid URL" in body["body"]
    assert not asked.calls


async def test_a_client_that_leaves_during_its_upload_is_not_served() -> None:
    asked = Asked()
    half = {"type": "http.request", "body": b'{"a"', "more_body": True}
    assert not await asked.request("POST", "/v1/completions", [half, {"type": "http.disconnect"}])
    assert not asked.calls
