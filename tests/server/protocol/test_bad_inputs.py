"""Hostile and broken requests: each gets its 4xx, and the server goes on as if nothing had been."""

import asyncio
import json
import threading
import time
from http.client import HTTPConnection

import httpx
import jiter
import pytest

from distaff.server.answering import read_request as intake
from distaff.server.answering import respond
from distaff.server.protocol.body import MOST_KEYS, MOST_PARTS
from distaff.server.testing import FakeText

from ...patience import patient

GOOD = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}
CANARY = "Hello, world!"


@pytest.fixture(autouse=True)
def unharmed(http, ask, engine, caplog):
    """After every case: healthy at once, the same answer as ever, nothing left running, nothing told."""
    yield
    begin = time.perf_counter()
    assert http.get("/health").status_code == 200
    assert time.perf_counter() - begin < patient(0.5)
    assert ask(temperature=0).json()["choices"][0]["message"]["content"] == CANARY
    assert engine.running == {}
    assert "distaff_requests_in_flight 0.0" in http.get("/metrics").text
    assert "Traceback" not in caplog.text


@pytest.fixture
def post(server):
    """Posts raw bytes."""

    def send(body: bytes):
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        connection.close()
        return reply.status, answer

    return send


def good(**changes) -> bytes:
    return json.dumps(GOOD | changes).encode()


def with_literal(name: str, literal: str) -> bytes:
    """A body with a value that no JSON library would write."""
    return good(**{name: "@"}).replace(b'"@"', literal.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"true",
        b"\xef\xbb\xbf" + good(),
        good() + b"x",
        good()[:-1],
        good().replace(b"hi", b"\xff\xfe"),
        good().replace(b"hi", b"\\ud800"),
        good().replace(b"hi", b"\x01"),
        b'{"model": "tgi", "model": "tgi"}',
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
        with_literal("temperature", "NaN"),
        with_literal("temperature", "Infinity"),
        with_literal("temperature", "1e400"),
        with_literal("top_p", "-1e999"),
        with_literal("seed", "1" * 5000),
    ],
)
def test_what_is_no_json_object_is_told_so(post, body):
    status, answer = post(body)
    assert status == 400
    assert answer["error"]["message"].startswith("We could not parse the JSON body of your request.")
    assert answer["error"]["param"] is None


CASES = [
    # (name, value, param)
    ("messages", ..., "messages"),
    ("messages", [], "messages"),
    ("messages", [{"role": "user", "content": "x"}] * 40_000, "messages"),
    ("messages", {}, "messages"),
    ("messages", [{"role": "wizard", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": 5, "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user"}], "messages.[0].content"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
    ("messages", [{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", "1", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", -1, "top_p"),
    ("top_p", 1.1, "top_p"),
    ("top_k", -2, "top_k"),
    ("top_k", 2**31, "top_k"),
    ("top_k", 2**63, "top_k"),
    ("top_k", 1.5, "top_k"),
    ("min_p", 2, "min_p"),
    ("min_p", -0.1, "min_p"),
    ("frequency_penalty", 2.1, "frequency_penalty"),
    ("presence_penalty", -2.1, "presence_penalty"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
    ("max_tokens", 2**31, "max_tokens"),
    ("max_tokens", 2**63, "max_tokens"),
    ("max_tokens", 10**4000, "max_tokens"),
    ("max_tokens", "9", "max_tokens"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("max_new_tokens", 0, "max_new_tokens"),
    ("n", 0, "n"),
    ("n", 17, "n"),
    ("n", 10**6, "n"),
    ("n", 2**63, "n"),
    ("best_of", 10**9, "best_of"),
    ("stop", ["x"] * 65, "stop"),
    ("stop", "", "stop"),
    ("stop", ["a", ""], "stop"),
    ("stop", "x" * 10**6, "stop"),
    ("stop", [None], "stop"),
    ("stop", ["x"] * 100_000, "stop"),
    ("stop", 5, "stop"),
    ("stop_token_ids", [-1], "stop_token_ids"),
    ("stop_token_ids", [2**63], "stop_token_ids"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", {"x": 101}, "logit_bias"),
    ("logit_bias", {str(i): 1 for i in range(100_000)}, "logit_bias"),
    ("seed", 2**64, "seed"),
    ("seed", 2**63, "seed"),
    ("seed", "x", "seed"),
    ("stream", "yes", "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
    ("user", "x" * 10**6, "user"),
    ("metadata", {str(i): "x" for i in range(17)}, "metadata"),
    ("metadata", {str(i): "x" for i in range(60_000)}, "metadata"),
    ("metadata", {"x" * 65: "y"}, "metadata"),
    ("metadata", {"x": 5}, "metadata.x"),
]


@pytest.mark.parametrize(("name", "value", "param"), CASES)
def test_a_bad_value_is_refused_by_name(ask, name, value, param):
    reply = ask(**{name: value})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(reply.content) < 1000


PARTS = {
    "members": b'{"a":{' + b",".join(b'"%d":1' % n for n in range(MOST_PARTS)) + b"}}",
    "arrays": b'{"a":[' + b",".join([b"[]"] * MOST_PARTS) + b"]}",
    "objects": b'{"a":[' + b",".join([b"{}"] * MOST_PARTS) + b"]}",
    "behind escapes": b'{"b":"\\\\\\"\\\\","a":[' + b",".join([b"[]"] * MOST_PARTS) + b"]}",
    "strings": b'{"a":[' + b",".join([b'"["'] * (2 * MOST_PARTS + 2**18 + 1)) + b"]}",
}


@pytest.mark.parametrize("body", PARTS.values(), ids=PARTS)
def test_a_body_of_very_many_parts_is_refused_unread(post, body, monkeypatch):
    monkeypatch.setattr(jiter, "from_json", None)  # it would hold the interpreter's lock for long
    status, answer = post(body)
    assert (status, answer["error"]["code"]) == (400, "body_too_complex")


def test_text_may_look_like_parts(ask):
    said = [{"role": "user", "content": '"[{:\\' * 40_000}]
    assert ask(messages=said).json()["error"]["code"] == "context_length_exceeded"


def test_a_body_of_many_keys_is_refused(ask):
    reply = ask(**{f"key{number}": 1 for number in range(MOST_KEYS)})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "object_above_max_properties")
    assert ask(**{f"key{number}": 1 for number in range(MOST_KEYS - 2)}).status_code == 200


def test_what_a_client_makes_long_runs_off_the_event_loop(server, ask, monkeypatch):
    """Parsing a large body, rendering in any case, encoding a long text, writing a long answer."""
    threads: dict[str, str] = {}

    def noted(module, name):
        function = getattr(module, name)

        def note(*arguments, **options):
            threads[name] = threading.current_thread().name
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, note)

    noted(intake, "parse_object")
    noted(respond, "to_json_by_items")
    noted(FakeText, "encode_chat")
    noted(FakeText, "encode")
    monkeypatch.setattr(server.engine, "reply", "x" * 1000)
    assert ask().status_code == 200
    assert threads.pop("encode_chat").startswith("render")
    assert threads.pop("to_json_by_items").startswith("text")
    assert ask(user="x" * 400, pad="x" * 8000).status_code == 200
    assert threads.pop("parse_object").startswith("text")
    body = {"model": "tgi", "prompt": "x" * 5000}
    for path, reply in (("/v1/completions", 400), ("/tokenize", 200)):
        assert httpx.post(server.url + path, json=body).status_code == reply
        assert threads.pop("encode").startswith("text")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 1e-45, 0.0),
        ("temperature", 0, 0.0),
        ("temperature", None, 1.0),
        ("top_p", 0, 0.0),
        ("top_k", -1, 0),
        ("seed", -1, -1),
        ("seed", -(2**63), -(2**63)),
        ("seed", 2**63 - 1, 2**63 - 1),
    ],
)
def test_the_edges_of_what_is_allowed(ask, engine, name, value, expected):
    assert ask(**{name: value}).status_code == 200
    assert getattr(engine.requests[-1].params, name) == expected


def test_the_model_is_not_a_path(ask):
    assert ask(model="../../x").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "text", ["{{ 7*7 }}", "{% for x in y %}", "{0.__class__}", "<|eot_id|>", "</s>[INST]"]
)
def test_text_stays_text(ask, engine, text):
    assert ask(messages=[{"role": "user", "content": text}]).status_code == 200
    assert bytes(engine.requests[-1].prompt[1:-1]) == f"user:{text}".encode()


@pytest.mark.parametrize(
    "text",
    [
        "a" * 8_000_000,
        "".join(chr(97 + i % 26) for i in range(1_000_000)),
        "🙂" * 1_000_000,
        "Z\u0351\u036b" * 100_000,
        "שלום" * 100_000,
    ],
    ids=["one character", "no spaces", "emoji", "zalgo", "right to left"],
)
def test_a_huge_text_is_refused_without_holding_up_the_loop(server, ask, text):
    """The encoder here is Python and holds the interpreter's lock, so the bound is loose."""
    lags: list[float] = []

    async def measure():
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - begin - 0.005)

    task = asyncio.run_coroutine_threadsafe(measure(), server.loop)
    try:
        reply = ask(messages=[{"role": "user", "content": text}])
    finally:
        task.cancel()
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert max(lags, default=0.0) < patient(0.5)


def test_many_choices_are_refused_at_once(ask):
    begin = time.perf_counter()
    assert ask(n=10**6).status_code == 400
    assert time.perf_counter() - begin < patient(0.5)
