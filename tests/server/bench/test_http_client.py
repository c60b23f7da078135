"""The client over real connections: which are used again, which are not, and what goes wrong."""

import socket
import ssl
from pathlib import Path

import pytest

from distaff.server.bench.http_client import AnswerBroken, ConnectionFailed, HttpClient
from distaff.server.exit_codes import USAGE, Failed

from .raw_server import CLOSE, HEAD, chunked, raw_server

OK = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]


async def body(client: HttpClient, path: str = "/x", content: bytes | None = None) -> bytes:
    async with client.ask(path, content) as answer:
        return await answer.body()


async def test_a_request_is_complete():
    """Path, host, length, and the caller's headers instead of the usual ones."""
    async with raw_server(OK) as server:
        client = server.client("/base/", {"authorization": "Bearer k", "user-agent": "me"})
        assert await body(client, "/v1/x", b"{}") == b"ok"
    head, _, content = server.requests[0].partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    assert (line, content) == ("POST /base/v1/x HTTP/1.1", b"{}")
    assert {"Authorization: Bearer k", "User-Agent: me", "Content-Length: 2"} <= set(headers)
    assert f"Host: {server.url.removeprefix('http://')}" in headers


async def test_a_connection_is_used_again_only_after_a_whole_answer():
    """An answer that is left early takes its connection with it."""
    async with raw_server([chunked(b"a")], OK) as server:
        client = server.client()
        assert await body(client) == b"data: a\n\n" and await body(client) == b"ok"
        assert server.connections == 1
        async with client.ask("/x"):
            pass
        assert await body(client) == b"ok"
        assert (server.connections, len(server.requests)) == (2, 4)


async def test_an_idle_connection_that_the_server_has_closed_costs_no_request():
    """The request goes over another connection; on a new one it fails."""
    async with raw_server(OK, [CLOSE], OK, [CLOSE]) as server:
        client = server.client()
        assert await body(client) == b"ok" and await body(client) == b"ok"
        client.close()
        with pytest.raises(AnswerBroken, match="without an answer"):
            await body(client)


async def test_the_server_decides_about_its_connection():
    """`Connection: close`, and a body that ends with the connection."""
    closing = [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", CLOSE]
    async with raw_server(closing, [b"HTTP/1.1 200 OK\r\n\r\nuntil the end", CLOSE]) as server:
        client = server.client()
        assert await body(client) == b"ok" and await body(client) == b"until the end"
        assert server.connections == 2


async def test_a_continuation_is_not_the_answer():
    """A status below 200 precedes the answer."""
    async with raw_server([b"HTTP/1.1 100 Continue\r\n\r\n", *OK]) as server:
        assert await body(server.client()) == b"ok"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([HEAD + b"5\r\nab", CLOSE], "closed the connection"),
        ([HEAD + b"size\r\n", CLOSE], "invalid literal"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", CLOSE], "closed the connection"),
        ([b"HTTP/1.1 200", CLOSE], "no HTTP/1.1 answer"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n", CLOSE], "begins with 'SSH-2.0-OpenSSH'"),
        ([b"HTTP/1.1 OK\r\n\r\n", CLOSE], "no HTTP/1.1 answer"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", CLOSE], "no HTTP/1.1 answer"),
    ],
)
async def test_a_broken_answer_is_an_error(script: list[bytes], message: str):
    """Cut off in the head or in the body, or no HTTP at all."""
    async with raw_server(script) as server:
        with pytest.raises(AnswerBroken, match=message):
            await body(server.client())


async def test_no_server_is_an_error():
    """A free port refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionFailed, match=r"refused|Connect call failed"):
            await body(HttpClient(f"http://127.0.0.1:{probe.getsockname()[1]}"))


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://", "http://x:port", "http://[", ""])
def test_a_url_of_something_else_is_wrong_usage(url: str):
    """With the value in the message."""
    with pytest.raises(Failed, match="expected one such as") as caught:
        HttpClient(url)
    assert caught.value.code == USAGE and repr(url) in str(caught.value)


async def test_tls_with_a_certificate_that_is_trusted_and_without(monkeypatch: pytest.MonkeyPatch):
    """An unknown certificate is refused."""
    pem = Path(__file__).with_name("localhost.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    async with raw_server(OK, tls=context) as server:
        with pytest.raises(ConnectionFailed, match="certificate"):
            await body(server.client())
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        client = server.client()
        assert await body(client) == b"ok" and await body(client) == b"ok"
        client.close()
