"""What HTTP itself may throw at the server, on raw sockets."""

import json
import socket
import time

import pytest

from distaff.server.answering.context import network_of
from distaff.server.http import MOST_CRUMBS

from ..patience import patient

POSTED = [
    *(b"/v1/chat/completions", b"/v1/responses", b"/v1/completions", b"/tokenize", b"/detokenize"),
    *(b"/chat_tokenize", b"/generate", b"/generate_stream", b"/", b"/invocations"),
]
"""Routes with a body."""
IN_TGIS_WORDS = {b"/generate", b"/generate_stream", b"/", b"/invocations"}
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(autouse=True)
def unharmed(http, ask, caplog):
    """After every case the server goes on as if nothing had been."""
    yield
    assert http.get("/health").status_code == 200
    assert ask().json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert "Traceback" not in caplog.text


def receive(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset counts as a close."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def send(server):
    """Sends bytes; returns what comes back until the connection is closed by the server."""

    def exchange(data: bytes) -> bytes:
        with server.connect() as connection:
            connection.settimeout(5)
            try:
                connection.sendall(data)
            except ConnectionError:
                pass
            return receive(connection)

    return exchange


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n{}",
        b"Content-Length: +5\r\n\r\n{}",
        b"Content-Length: 1_0\r\n\r\n{}",
        b"Content-Length: 0x5\r\n\r\n{}",
        b"Content-Length:\r\n\r\n{}",
        b"Content-Length : 2\r\n\r\n{}",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n",
        b"Host: y\r\n\r\n",
        b"X: a\x00b\r\n\r\n",
        b"X: a\r\n folded\r\n\r\n",
        b"no colon\r\n\r\n",
    ],
)
def test_an_ambiguous_request_is_refused_and_the_connection_closed(send, headers):
    reply = send(POST + headers)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b'"type":"invalid_request_error"' in reply
    assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET /h\xffalth HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_request_of_ours_is_refused(send, data):
    assert send(data).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 99999999999999\r\n\r\n",
        POST + b"Content-Length: 8388609\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n800001\r\n",
        b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"abcdefg: h\r\n" * 1000 + b"\r\n",
        bytes(range(128, 256)) * 512,
    ],
    ids=["length", "one more than allowed", "chunk", "head", "URL", "1000 headers", "random"],
)
def test_what_is_too_large_is_not_even_read(send, data):
    begin = time.perf_counter()
    reply = send(data)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 413 ")
    assert time.perf_counter() - begin < patient(2)


def test_a_chunked_body_is_read(send):
    body = b'{"model": "tgi", "messages": [{"role": "user", "content": "x"}]}'
    chunks = b"%x;%b\r\n%b\r\n0\r\n\r\n" % (len(body), b"x" * 70, body)
    reply = send(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert reply.startswith(b"HTTP/1.1 200 OK")


def test_a_body_may_come_in_small_chunks_up_to_a_number(send):
    """JSON encoders that stream send each token as a chunk; a body in single bytes is work without end."""
    text = "x" * (MOST_CRUMBS - 100)
    body = b'{"model": "tgi", "messages": [{"role": "user", "content": "' + text.encode() + b'"}]}'
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    assert b"context_length_exceeded" in send(head + chunks + b"0\r\n\r\n")
    assert send(head + 2 * chunks).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"x-unknown", b"identity, gzip", b"Gzip"])
@pytest.mark.parametrize("path", POSTED)
def test_a_compressed_body_is_refused_whatever_it_is(send, path, encoding):
    """Also one that is plain JSON: another reader of the same request would read something else."""
    body = b'{"model": "tgi", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "inputs": "x"}'
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n" % (path, len(body))
    head, answer = send(head + b"Content-Encoding: %b\r\n\r\n" % encoding + body).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 415 ") and b"accept-encoding: identity" in head
    error = json.loads(answer)["error"]
    assert ("gzip" in str(error).lower()) == (b"zip" in encoding)
    assert isinstance(error, str) == (path in IN_TGIS_WORDS)


def test_a_body_that_says_it_is_not_compressed_is_taken(ask, http):
    body = {"model": "tgi", "messages": [{"role": "user", "content": "x"}]}
    headers = {"content-encoding": "identity"}
    assert http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200


def test_expectations(send):
    head = POST + b"Connection: close\r\nContent-Length: 2\r\nExpect: "
    assert send(head + b"100-continue\r\n\r\n{}").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")
    assert send(head + b"foo\r\n\r\n{}").startswith(b"HTTP/1.1 417 ")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"DELETE /v1/chat/completions", 405),
        (b"BREW /health", 405),
        (b"TRACE /health", 405),
        (b"HEAD /v1/chat/completions", 405),
        (b"HEAD /health", 200),
        (b"HEAD /v1/models", 200),
        (b"OPTIONS /v1/chat/completions", 204),
        (b"OPTIONS *", 204),
        (b"GET /nope", 404),
        (b"GET /v1/../metrics", 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd", 404),
        (b"GET //v1/models", 404),
        (b"GET /a%00b", 404),
        (b"GET http://x/health", 404),
    ],
)
def test_methods_and_paths(send, line, status):
    headers = b"Host: x\r\nConnection: close\r\nOrigin: https://evil.example\r\nX-Secret: planted\r\n\r\n"
    head, body = send(line + b" HTTP/1.1\r\n" + headers).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"access-control-allow-origin" not in head.lower()
    assert (b"allow: " in head) == (status == 405)
    assert b"planted" not in body
    if line.startswith(b"HEAD") or status == 204:
        assert body == b""


def test_a_websocket_is_not_to_be_had(send):
    headers = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    assert send(b"GET /chat HTTP/1.1\r\n" + headers).startswith(b"HTTP/1.1 404 ")


class TestLimits:
    """Deadlines, and the number of connections."""

    def test_a_head_has_a_deadline_however_steadily_it_drips(self, make_server):
        server = make_server(head_seconds=0.5, body_seconds=0.5)
        with server.connect() as connection:
            begin = time.perf_counter()
            with pytest.raises(ConnectionError):
                for byte in b"GET /health HTTP/1.1\r\nHost: " + b"x" * 1000:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.02)
            assert 0.3 < time.perf_counter() - begin < patient(2)

    def test_a_body_has_a_deadline(self, make_server):
        server = make_server(head_seconds=0.5, body_seconds=0.5)
        with server.connect() as connection:
            begin = time.perf_counter()
            connection.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
            reply = receive(connection)
            assert reply.startswith(b"HTTP/1.1 408 ") and b"connection: close\r\n" in reply
            error = json.loads(reply.split(b"\r\n\r\n", 1)[1])["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")
            assert 0.3 < time.perf_counter() - begin < patient(2)

    def test_an_idle_connection_may_wait(self, make_server):
        server = make_server(head_seconds=0.2)
        with server.connect() as connection:
            time.sleep(0.5)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.5)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert receive(connection).startswith(b"HTTP/1.1 200 ")

    def test_connections_beyond_the_cap_are_refused(self, make_server):
        server = make_server(most_connections=2)
        first, second = server.connect(), server.connect()
        time.sleep(0.1)
        with server.connect() as third:
            try:
                third.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            except ConnectionError:
                pass
            assert receive(third) == b""
        first.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert receive(first).startswith(b"HTTP/1.1 200 ")
        second.close()
        first.close()


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_a_network_is_one_client(address: str, client: str):
    assert network_of(address) == client
