"""The way to the server beside an actor: bytes as they are, and the end of one side is seen by the other."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

pytest.importorskip("aiohttp", reason="the extra `ray` installs it")

from distaff.server.answering.resuming import KEY_HEADER, LENGTH_HEADER
from distaff.server.ray_serve.call import Call, Head, ReplicaLost
from distaff.server.ray_serve.loopback import Loopback

from ..conftest import MODEL, Server

KEY = "of the proxies"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
OWN = ("date", "x-request-id", "openai-processing-ms", "connection", "keep-alive", "transfer-encoding")
"""Headers that belong to one answer or to one connection."""


@pytest.fixture(scope="module")
def server():
    server = Server(resume_key=KEY)
    yield server
    server.close()


@pytest.fixture
async def loopback(server: Server) -> AsyncIterator[Loopback]:
    loopback = Loopback(server.port, KEY)
    yield loopback
    await loopback.close()


async def whole(loopback: Loopback, call: Call) -> tuple[Head, bytes]:
    head, body = Head(0, ()), b""
    async for piece in loopback.ask(call):
        if isinstance(piece, Head):
            head = piece
        else:
            body += piece
    return head, body


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/models"),
        ("GET", "/nope/%2e%2e//x?a=%20b&a=c"),
        ("GET", "//127.0.0.1:1/x"),
        ("HEAD", "/health"),
        ("OPTIONS", "/v1/models"),
        ("GET", "/"),
        ("POST", "/v1/chat/completions"),
    ],
)
async def test_answers_are_the_servers_own(
    server: Server, loopback: Loopback, method: str, target: str
) -> None:
    headers = [("accept", "text/html"), ("authorization", "Bearer x")]
    head, body = await whole(loopback, Call(method, target, headers, b"{" if method == "POST" else b""))
    async with httpx.AsyncClient(base_url=server.url) as client:
        content = b"{" if method == "POST" else None
        direct = await client.request(
            method, httpx.URL(server.url + target), headers=headers, content=content
        )
    assert (head.status, body) == (direct.status_code, direct.content)
    through = [(name.lower(), value) for name, value in head.headers if name.lower() not in OWN]
    expected = [(n, v) for n, v in direct.headers.multi_items() if n not in (*OWN, "content-length")]
    assert through == expected


@pytest.mark.parametrize("target", ["%2F@{}/x", "@{}/x", ":1@{}/x", "//{}/x", "/@{}/x"])
async def test_no_target_reaches_another_server(target: str) -> None:
    async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer.get_extra_info("sockname")[1])
        writer.close()

    asked: list[int] = []
    ours, other = [await asyncio.start_server(ended, "127.0.0.1", 0) for _ in range(2)]
    port, others = (each.sockets[0].getsockname()[1] for each in (ours, other))
    loopback = Loopback(port, KEY)
    with pytest.raises((ReplicaLost, ValueError)):
        await whole(loopback, Call("GET", target.format(f"127.0.0.1:{others}"), []))
    await loopback.close()
    for each in (ours, other):
        each.close()
        await each.wait_closed()
    assert others not in asked


async def test_marks_are_asked_for_and_handed_over(server: Server, loopback: Loopback) -> None:
    """A client's own headers for them are dropped, so it can neither see marks nor send any."""
    server.reset()
    body = json.dumps(CHAT | {"stream": True}).encode()
    mine = [(KEY_HEADER, "guessed"), (LENGTH_HEADER, "3"), ("content-type", "application/json")]
    _, stream = await whole(loopback, Call("POST", "/v1/chat/completions", mine, body))
    blocks = stream.split(b"\n\n")
    marks = [block.removeprefix(b": resume ") for block in blocks if block.startswith(b": resume ")]
    assert len(marks) > 2
    call = Call("POST", "/v1/chat/completions", mine, body, marks=b"\n".join(marks[:2]))
    _, rest = await whole(loopback, call)
    assert rest.split(b"\n\n")[0] == blocks[blocks.index(b": resume " + marks[1]) + 1]


async def test_a_closed_answer_aborts_the_sequence(server: Server, loopback: Loopback) -> None:
    server.reset()
    server.engine.delay, server.engine.reply = 0.05, "x" * 1000
    body = json.dumps(CHAT | {"stream": True, "max_tokens": 1000}).encode()
    pieces = loopback.ask(Call("POST", "/v1/chat/completions", [], body))
    assert isinstance(await anext(pieces), Head)
    await anext(pieces)
    await pieces.aclose()
    async with asyncio.timeout(1):
        while not server.engine.aborted:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("sent", "arrives"), [(b"caf\xc3\xa9", b"caf\xc3\xa9"), (b"caf\xe9", b"caf\xc3\xa9")]
)
async def test_headers_arrive_as_they_were_sent(sent: bytes, arrives: bytes) -> None:
    """But for bytes that are not UTF-8."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\nx-own: %b\r\nconnection: close\r\n\r\n" % sent)
        writer.close()

    asked: list[bytes] = []
    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    loopback = Loopback(listening.sockets[0].getsockname()[1], KEY)
    head, _ = await whole(loopback, Call("GET", "/", [("x-own", sent.decode("latin-1"))]))
    await loopback.close()
    listening.close()
    await listening.wait_closed()
    assert b"x-own: " + arrives + b"\r\n" in asked[0]
    assert ("x-own", sent.decode("latin-1")) in head.headers


CHUNK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.mark.parametrize("sent", [b"", CHUNK[:17], CHUNK], ids=["nothing", "half a head", "half a body"])
async def test_a_server_that_is_gone_is_a_lost_replica(sent: bytes) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    broken = await asyncio.start_server(break_off, "127.0.0.1", 0)
    loopback = Loopback(broken.sockets[0].getsockname()[1], KEY)
    with pytest.raises(ReplicaLost):
        await whole(loopback, Call("POST", "/", [], b"{}"))
    broken.close()
    await broken.wait_closed()
    with pytest.raises(ReplicaLost):
        await whole(loopback, Call("GET", "/", []))
    assert await loopback.status("/", 1.0) == 0
    await loopback.close()
