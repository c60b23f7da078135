"""A server with keys: nobody is answered without one, and no body is read before it is known whose it is."""

import json
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.answering.authorization import NO_KEY, OPEN_PATHS, _hint
from distaff.server.command.chat_client import ChatClient
from distaff.server.exit_codes import Failed
from distaff.server.keys import Keys

FIRST, SECOND = "sk-first-0123456789", "sk-second-0123456789"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
BODY = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def keyed(make_server):
    """A server that two keys open."""
    return make_server(keys=Keys([FIRST, SECOND]))


@pytest.fixture
def http_keyed(keyed):
    with httpx.Client(base_url=keyed.url, timeout=20) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def chat(http: httpx.Client, key: str, **more: object) -> httpx.Response:
    return http.post("/v1/chat/completions", json=BODY | more, headers=bearer(key))


def exchange(server, *pieces: bytes) -> bytes:
    """What is answered to bytes until the server closes the connection."""
    with server.connect() as connection:
        connection.settimeout(5)
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(partial(connection.recv, 65536), b""))


def refused(reply: httpx.Response) -> dict[str, object]:
    """The error in a refusal, which is of the right kind."""
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["connection"] == "close"
    assert re.fullmatch(r"req_[0-9a-f]{32}", reply.headers["x-request-id"])
    error = reply.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    return error


class TestWithoutAKey:
    """Who brings none."""

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": ""},
            {"authorization": "Bearer"},
            {"authorization": FIRST},
            {"authorization": f"Basic {FIRST}"},
            {"authorization": f"Bearer\t{FIRST}"},
            {"api-key": FIRST},
            {"x-api-key": FIRST},
            [("authorization", f"Bearer {FIRST}"), ("authorization", f"Bearer {SECOND}")],
            [("authorization", f"Bearer {FIRST}"), ("authorization", FIRST)],
        ],
        ids=str,
    )
    def test_is_told_how_to_bring_one(self, http_keyed, headers):
        error = refused(http_keyed.post("/v1/chat/completions", json=BODY, headers=headers))
        assert (error["message"], error["code"]) == (NO_KEY, None)

    def test_one_key_twice_is_one_key(self, http_keyed):
        """sglang-router with `--api-key` sends the header twice."""
        twice = [("authorization", f"Bearer {FIRST}")] * 2
        assert http_keyed.get("/v1/models", headers=twice).status_code == 200

    def test_an_empty_key_is_none(self, keyed):
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \r\n\r\n"
        assert NO_KEY.encode() in exchange(keyed, head)

    def test_a_key_in_the_url_is_none_and_is_not_logged(self, http_keyed, caplog):
        assert refused(http_keyed.get("/v1/models", params={"api_key": FIRST}))["code"] is None
        assert FIRST not in caplog.text

    def test_every_route_is_closed_but_those_named(self, keyed, http_keyed):
        """Walked from the router, so that a new one is closed too."""
        routes = {f"/{route.path}": route.methods for route in keyed.app.router.routes}
        assert routes.keys() > OPEN_PATHS and "/metrics" in routes
        for path, methods in routes.items():
            for method in methods - {"OPTIONS"}:
                reply = http_keyed.request(method, re.sub(r"<[^>]*>", "x", path))
                is_page = path == "/" and method in ("GET", "HEAD")
                assert (reply.status_code != 401) == (path in OPEN_PATHS or is_page), (method, path)

    @pytest.mark.parametrize(
        "path", ["/page", "/nope", "/v1/nope", "//health", "/health/x", "/ready/../metrics"]
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "BREW"])
    def test_nor_is_it_told_what_is_no_route(self, keyed, http_keyed, method, path):
        assert http_keyed.request(method, keyed.url + path).status_code == 401

    def test_life_readiness_and_options_are_open(self, http_keyed):
        assert http_keyed.get("/health").json() == http_keyed.get("/ping").json() == {"status": "ok"}
        assert http_keyed.get("/ready").json()["status"] == "ready"
        assert http_keyed.options("/v1/chat/completions").status_code == 204

    @pytest.mark.parametrize(
        "line",
        [
            b"GET http://x/metrics",
            b"GET http://x/health",
            b"GET /health?/metrics",
            b"GET /metrics?/health",
            b"GET /metrics;/health",
            b"GET /%68ealth",
            b"GET /%6detrics",
            b"GET /health%2f..%2fmetrics",
            b"GET *",
            b"GET http://",
            b"CONNECT x:1",
        ],
    )
    def test_no_spelling_of_a_path_opens_another(self, keyed, line):
        head, _, body = exchange(
            keyed, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ).partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert status in (400, 401, 404) or (status == 200 and body == b'{"status":"ok"}')


class TestAWrongKey:
    """Who brings one that is not accepted."""

    @pytest.mark.parametrize(
        ("key", "shown"),
        [
            ("sk-5fffffffffffffacdb", ": sk-5…acdb"),
            ("twelve-chars", ": twel…hars"),
            ("eleven-char", ""),
            ("x", ""),
            (FIRST.upper(), ": SK-F…6789"),
            (FIRST[:-1], ": sk-f…5678"),
            (f"{FIRST} ", ""),
            (f" {FIRST}", ""),
            (f"{FIRST},{SECOND}", ": sk-f…6789"),
        ],
    )
    def test_is_told_which_and_not_what(self, keyed, key, shown):
        # A raw socket, because clients strip spaces.
        head, body = exchange(
            keyed, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % key.encode()
        ).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401 ") and b"\r\nwww-authenticate: Bearer\r\n" in head + b"\r\n"
        assert json.loads(body)["error"] == {
            "message": f"Incorrect API key provided{shown}.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }

    def test_bytes_that_are_no_text_are_answered_too(self, keyed):
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe%b\r\n\r\n" % (b"x" * 20)
        assert b'"message":"Incorrect API key provided."' in exchange(keyed, head)

    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
    def test_no_more_than_eight_characters_are_repeated(self, key):
        hint = _hint(key)
        if len(key) < 12:
            assert hint == ""
        else:
            assert hint == f": {key[:4]}…{key[-4:]}"

    def test_openais_client_knows_what_it_is_told(self, keyed):
        with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="sk-nobody-0123", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refusal:
                client.chat.completions.create(**BODY)
            assert refusal.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=FIRST, max_retries=0) as client:
            whole = client.chat.completions.create(**BODY)
            assert whole.choices[0].message.content == "Hello, world!"

    def test_a_large_body_does_not_keep_the_refusal_from_its_sender(self, http_keyed):
        for _ in range(20):
            refused(http_keyed.post("/v1/chat/completions", content=b" " * 8_000_000))


class TestBeforeTheBody:
    """A refusal comes at once, on a raw socket, and the connection ends with it."""

    @pytest.mark.parametrize("authorization", [b"", b"Authorization: Bearer sk-nobody-0123\r\n"])
    @pytest.mark.parametrize(
        "body",
        [
            b"Content-Length: 99999999999\r\n\r\n",
            b"Content-Length: 8000000\r\n\r\n{",
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
        ],
    )
    def test_nothing_more_is_waited_for(self, keyed, authorization, body):
        """Not even what would be too large is looked at, and nobody is asked to go on."""
        reply = exchange(keyed, POST + authorization + body)
        assert reply.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert reply.count(b"HTTP/1.1") == 1

    def test_nothing_that_follows_is_answered(self, keyed):
        """What looks like a body is not taken for a request."""
        smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        reply = exchange(keyed, POST + b"Content-Length: 35\r\n\r\n" + smuggled)
        assert reply.count(b"HTTP/1.1") == 1

    def test_every_request_of_a_connection_needs_a_key(self, keyed):
        get = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"
        key = f"Authorization: Bearer {FIRST}\r\n\r\n".encode()
        reply = exchange(keyed, get + key + get + key + get + b"\r\n" + get + key)
        assert re.findall(rb"HTTP/1.1 (\d+)", reply) == [b"200", b"200", b"401"]


class TestARightKey:
    """Who is let in."""

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    @pytest.mark.parametrize("key", [FIRST, SECOND])
    def test_is_served(self, http_keyed, scheme, key):
        reply = http_keyed.get("/v1/models", headers={"authorization": f"{scheme} {key}"})
        assert reply.status_code == 200

    def test_hears_what_is_no_route(self, http_keyed):
        reply = http_keyed.get("/nope", headers=bearer(FIRST))
        assert (reply.status_code, reply.json()["error"]["message"]) == (404, "Invalid URL (GET /nope)")

    def test_finds_only_its_own_prompts_in_the_cache(self, keyed, http_keyed):
        """Two keys never share what one's requests share, whatever salt they send."""
        asked = [
            (FIRST, {}),
            (FIRST, {}),
            (SECOND, {}),
            (FIRST, {"cache_salt": "a"}),
            (SECOND, {"cache_salt": "a"}),
        ]
        for key, more in asked:
            assert chat(http_keyed, key, **more).status_code == 200
        assert chat(http_keyed, FIRST, n=2).status_code == 200
        first, again, second, salted, other, *choices = [r.cache_salt for r in keyed.engine.requests]
        assert first == again == choices[0] == choices[1] == Keys([FIRST]).identify(FIRST)
        assert len({first, second, salted, other}) == 4
        assert salted == first + "a" and other == second + "a"

    def test_without_keys_a_salt_is_the_requests_own(self, ask, engine):
        ask(cache_salt="a")
        ask()
        assert [request.cache_salt for request in engine.requests] == ["a", ""]

    @pytest.mark.parametrize("authorization", ["Bearer -", "Bearer EMPTY", "Basic x", "", "none"])
    def test_without_keys_any_header_will_do(self, http, authorization):
        assert http.get("/v1/models", headers={"authorization": authorization}).status_code == 200

    def test_is_named_in_the_log_by_its_id_alone(self, http_keyed, caplog):
        with caplog.at_level("DEBUG"):
            reply = chat(http_keyed, FIRST)
            chat(http_keyed, "sk-nobody-0123456789")
        (line,) = [r.getMessage() for r in caplog.records if r.name == "distaff.server.call_record"]
        key_id = Keys([FIRST]).identify(FIRST)
        assert line.startswith(f"{reply.headers['x-request-id']} key={key_id} model=")
        assert FIRST not in caplog.text and "sk-nobody" not in caplog.text
        metrics = http_keyed.get("/metrics", headers=bearer(FIRST)).text
        assert 'distaff_responses_total{status="401"} 1.0' in metrics
        assert FIRST not in metrics and key_id not in metrics


def test_a_revoked_key_ends_no_stream_that_it_began(make_server, tmp_path):
    """The file is read again while the stream goes on: it ends in order, and the next call is refused."""
    now = 0.0
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{FIRST}\n")
    server = make_server(keys=Keys(file=file, clock=lambda: now, wall=lambda: file.stat().st_ctime + now))
    server.engine.gate.clear()
    with httpx.Client(base_url=server.url, timeout=20) as http:
        request = {"json": BODY | {"stream": True}, "headers": bearer(FIRST)}
        with http.stream("POST", "/v1/chat/completions", **request) as reply:
            assert reply.status_code == 200
            file.write_text(f"{SECOND}\n")
            assert http.get("/v1/models", headers=bearer(FIRST)).status_code == 200
            now = 1.0
            assert refused(http.get("/v1/models", headers=bearer(FIRST)))["code"] == "invalid_api_key"
            assert http.get("/v1/models", headers=bearer(SECOND)).status_code == 200
            server.loop.call_soon_threadsafe(server.engine.gate.set)
            assert reply.read().endswith(b"data: [DONE]\n\n")


class TestTheTerminal:
    """`distaff chat` against a server with keys."""

    def test_it_brings_the_key(self, keyed):
        client = ChatClient(keyed.url, FIRST)
        messages = [{"role": "user", "content": "hi"}]
        assert "".join(client.reply(client.model(), messages)) == "Hello, world!"
        with pytest.raises(Failed, match="401: You didn't provide an API key"):
            ChatClient(keyed.url).model()

    @pytest.mark.parametrize("key", ["sk-with space", "sk-with-newline\n", "sk-ümlaut"])
    def test_a_key_that_no_header_carries_is_refused(self, key):
        with pytest.raises(Failed, match="visible ASCII") as refusal:
            ChatClient("http://127.0.0.1:9", key)
        assert key not in str(refusal.value)

    def test_the_command_takes_it_from_the_environment(self, keyed, monkeypatch):
        command = [sys.executable, "-m", "distaff.server.command.cli", "chat", "--url", keyed.url]
        run = partial(subprocess.run, command, input="hi\n", capture_output=True, text=True, timeout=60)
        monkeypatch.setenv("DISTAFF_API_KEY", SECOND)
        assert (run().stdout, run().returncode) == ("Hello, world!\n", 0)
        monkeypatch.delenv("DISTAFF_API_KEY")
        done = run()
        assert done.returncode == 69 and "You didn't provide an API key" in done.stderr

    @pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, which other tests have loaded; the child execs
    def test_its_own_server_has_a_key_of_its_own(self, monkeypatch, tmp_path):
        """Whatever keys the environment holds, and whether or not there is one for the client."""
        from distaff.server.command import own_server

        stand_in = tmp_path / "python"
        script = Path(__file__).with_name("own_server_stand_in.py")
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        stand_in.chmod(0o755)
        monkeypatch.setenv("DISTAFF_API_KEYS", FIRST)
        monkeypatch.setattr(own_server.sys, "executable", str(stand_in))
        with own_server.own_server(None) as (url, key):
            assert key != FIRST
            assert ChatClient(url, key).model() == "stand-in"
            with pytest.raises(Failed, match="401"):
                ChatClient(url, FIRST).model()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1)
