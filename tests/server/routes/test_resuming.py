"""Resumable streams: wherever a stream is cut, another server sends exactly the bytes that are missing."""

import json
import re
from typing import Any

import httpx
import pytest

from distaff.server.answering.resuming import KEY_HEADER, LENGTH_HEADER
from distaff.server.encode import KEEP_ALIVE
from distaff.server.protocol.heading import Identity
from distaff.server.protocol.marks import Mark, mark_of

from ..conftest import MODEL, Server
from .thinking_text import CALL, NOW, REPLY, ThinkingText

KEY = "of the proxies"
USER = [{"role": "user", "content": "hi"}]
TOOL = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}


def chat(**changes: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": USER, "stream_options": {"include_usage": True}} | changes


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": chat(max_tokens=9),
    "choices": chat(n=3, max_tokens=6),
    "logprobs": chat(logprobs=True, top_logprobs=2, stop="ld"),
    "a stop string": chat(n=2, stop="wor"),
    "two bytes": chat(messages=[*USER, {"role": "user", "content": "two"}]),
    "tools": chat(tools=[NOW], messages=[*USER, {"role": "user", "content": "call"}]),
    "reasoning": chat(messages=[*USER, {"role": "user", "content": "think"}]),
    "completions": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "logprobs": 1, "echo": True}),
    "responses": ("/v1/responses", {"input": "think", "tools": [FUNCTION]}),
    "response calls": ("/v1/responses", {"input": "call", "tools": [FUNCTION]}),
    "messages": ("/v1/messages", {"messages": USER, "max_tokens": 64, "tools": [TOOL]}),
    "tgi": ("/generate_stream", {"inputs": "a", "parameters": {"details": True, "max_new_tokens": 7}}),
}


def reply(request):
    prompt = bytes(token for token in request.prompt if token < 256)
    if b"call" in prompt:
        return f"Now {CALL} and {CALL}.".encode()
    if b"think" in prompt:
        return REPLY.encode()
    if b"two" in prompt:
        return "Grüße, 世界!".encode()
    return b"Hello, world!" if request.choice != 1 else b"Hi, wor"


@pytest.fixture(scope="module")
def servers():
    pair = [Server(resume_key=KEY), Server(resume_key=KEY)]
    for server in pair:
        server.engine.reply = reply
        server.served.text = ThinkingText()
    yield pair
    for server in pair:
        server.close()


@pytest.fixture
def post(servers, httpx_client):
    def posted(server: int, path: str, body: bytes, headers: dict[str, str] | None = None):
        url = servers[server].url + path
        return httpx_client.post(url, content=body, headers={KEY_HEADER: KEY} | (headers or {}))

    return posted


@pytest.fixture
def httpx_client():
    with httpx.Client(timeout=30) as client:
        yield client


def groups_of(stream: bytes) -> tuple[list[bytes], list[bytes]]:
    """The groups of a stream, the last one without a mark; and the marks."""
    groups, marks = [b""], []
    for block in stream.split(b"\n\n"):
        if block.startswith(b": resume "):
            marks.append(block.removeprefix(b": resume "))
            groups.append(b"")
        else:
            groups[-1] += block + b"\n\n"
    return groups, marks


def resume(post: Any, server: int, path: str, marks: list[bytes], body: bytes) -> bytes:
    """What the server answers."""
    kept = b"\n".join(marks)
    answered = post(server, path, kept + body, {LENGTH_HEADER: str(len(kept))})
    assert answered.status_code == 200, answered.text
    return answered.content


def timeless(stream: bytes) -> list[bytes]:
    """The blocks of a stream without keep-alives and the time of its end, sorted: choices may alternate."""
    stream = stream.replace(KEEP_ALIVE, b"")
    return sorted(re.sub(rb'"completed_at":\d+', b'"completed_at":0', stream).strip(b"\n").split(b"\n\n"))


@pytest.mark.parametrize("name", CALLS)
def test_a_stream_that_is_cut_anywhere_goes_on_elsewhere_to_the_byte(post, name):
    path, fields = CALLS[name]
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()
    answered = post(0, path, body)
    assert answered.status_code == 200, answered.text
    groups, marks = groups_of(answered.content)
    assert len(groups) == len(marks) + 1 > 4
    whole = timeless(b"".join(groups))
    for cut in range(1, len(groups)):
        rest, further = groups_of(resume(post, 1, path, marks[:cut], body))
        assert timeless(b"".join(groups[:cut] + rest)) == whole
        assert len(further) == len(marks) - cut


@pytest.mark.parametrize("name", ["chat", "tools", "logprobs", "choices", "response calls"])
def test_a_silent_stream_can_be_resumed_twice(post, servers, monkeypatch, name):
    """Its keep-alives have marks, too, with tokens that have made no delta yet."""
    monkeypatch.setattr("distaff.server.answering.respond.KEEP_ALIVE_SECONDS", 0.01)
    for server in servers:
        monkeypatch.setattr(server.engine, "delay", 0.004)
    path, fields = CALLS[name]
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()
    groups, marks = groups_of(post(0, path, body).content)
    whole = timeless(b"".join(groups))
    silent = [n for n, group in enumerate(groups[:-1], 1) if KEEP_ALIVE in group]
    for cut in {*silent[::7], len(marks) // 2}:
        kept = marks[:cut]
        rest, further = groups_of(resume(post, 1, path, kept, body))
        assert timeless(b"".join(groups[:cut] + rest)) == whole
        kept = kept + further[: len(further) // 2]
        last, _ = groups_of(resume(post, 0, path, kept, body))
        assert timeless(b"".join(groups[:cut] + rest[: len(further) // 2] + last)) == whole


def test_a_long_replay_is_not_taken_for_a_client_that_does_not_read(post, servers, monkeypatch):
    monkeypatch.setattr("distaff.server.text.generation.MOST_UNREAD", 40)
    path, fields = chat(messages=[*USER, {"role": "user", "content": "two"}], max_tokens=300, stop=None)
    fields["ignore_eos"] = True
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()
    monkeypatch.setattr(servers[0].engine, "delay", 0.001)
    groups, marks = groups_of(post(0, path, body).content)
    rest, _ = groups_of(resume(post, 1, path, marks[:-20], body))
    assert timeless(b"".join([*groups[: len(marks) - 20], *rest])) == timeless(b"".join(groups))


def test_a_resumed_stream_that_waits_is_kept_alive(post, servers, monkeypatch):
    monkeypatch.setattr("distaff.server.answering.respond.KEEP_ALIVE_SECONDS", 0.01)
    path, fields = chat()
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()
    _, marks = groups_of(post(0, path, body).content)
    monkeypatch.setattr(servers[1].engine, "delay", 0.1)
    rest, _ = groups_of(resume(post, 1, path, marks[:3], body))
    assert rest[0] == KEEP_ALIVE


def test_what_a_stream_has_used_on_lost_servers_counts(post, servers, monkeypatch):
    for server in servers:
        monkeypatch.setattr(server.engine, "device_seconds", 1.0)
        monkeypatch.setattr(server.engine, "waited", 0.5)
    path, fields = chat(max_tokens=9)
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()

    def asked(server, headers, content):
        return groups_of(post(server, path, content, headers | {"x-distaff-usage": "full"}).content)

    _, marks = asked(0, {}, body)
    kept = marks[:4]
    for server in (1, 0):
        state = b"\n".join(kept)
        groups, further = asked(server, {LENGTH_HEADER: str(len(state))}, state + body)
        kept += further[:3]
    usage = json.loads(groups[-1].split(b"data: ")[-2])["usage"]
    assert usage["distaff"] == {"device_seconds": 9.0, "page_seconds": 18.0, "queue_seconds": 0.5}


def test_what_has_ended_is_not_computed_again(post, servers):
    path, fields = chat(stop="wor")
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()
    _, marks = groups_of(post(0, path, body).content)
    before = len(servers[1].engine.requests)
    rest, _ = groups_of(resume(post, 1, path, marks, body))
    assert b"[DONE]" in rest[0]
    assert len(servers[1].engine.requests) == before


def test_the_rest_of_a_resumed_stream_can_be_resumed_again(post, servers):
    path, fields = chat()
    body = json.dumps({"model": MODEL, "stream": True} | fields).encode()
    groups, marks = groups_of(post(0, path, body).content)
    kept = b"\n".join(marks[:3])
    rest, further = groups_of(post(1, path, kept + body, {LENGTH_HEADER: str(len(kept))}).content)
    kept = b"\n".join([*marks[:3], *further[:3]])
    last, _ = groups_of(post(0, path, kept + body, {LENGTH_HEADER: str(len(kept))}).content)
    assert timeless(b"".join([*groups[:3], *rest[:3], *last])) == timeless(b"".join(groups))
    generated = servers[0].engine.requests[-1].generated
    assert bytes(generated) == b"Hello"  # one of the six marks is of the opening
    assert len({server.engine.requests[-1].params.seed for server in servers}) == 1


def test_without_the_key_nothing_is_marked_or_resumed(servers, server, httpx_client):
    url = servers[0].url + "/v1/chat/completions"
    body = {"model": MODEL, "messages": USER, "stream": True}
    assert b": resume" not in httpx_client.post(url, json=body).content
    for wrong in (b"another", b"\xff"):
        assert httpx_client.post(url, json=body, headers={KEY_HEADER: wrong}).status_code == 403
    refused = httpx_client.post(url, json=body, headers={KEY_HEADER: "another"})
    assert refused.status_code == 403 and "DISTAFF_RESUME_KEY" in refused.json()["error"]["message"]
    url = server.url + "/v1/chat/completions"
    refused = httpx_client.post(url, json=body, headers={KEY_HEADER: KEY})
    assert refused.status_code == 403  # that server has no key


FIRST = mark_of(Mark(identity=Identity(), fingerprint="0123456789")).removeprefix(b": resume ").strip()
OTHER = mark_of(Mark(identity=Identity(), fingerprint="9876543210")).removeprefix(b": resume ").strip()
NO_CHOICE = mark_of(Mark([(7, (65, 0.0, 0.0))])).removeprefix(b": resume ").strip()


@pytest.mark.parametrize(
    ("marks", "length", "status", "says"),
    [
        (FIRST, "99999", 400, "expected 1 to"),
        (FIRST, "-1", 400, "expected 1 to"),
        (FIRST, "9" * 5000, 400, "expected 1 to"),
        (b"!!", "2", 400, "cannot be read"),
        (b"kA==", "4", 400, "does not say how the stream began"),
        (FIRST + b"\n" + NO_CHOICE, None, 400, "not of this request"),
        (OTHER, None, 409, "'9876543210'"),
    ],
)
def test_marks_that_do_not_fit_are_refused(post, marks, length, status, says):
    path, fields = chat(stream=True, model=MODEL)
    refused = post(0, path, marks + json.dumps(fields).encode(), {LENGTH_HEADER: length or str(len(marks))})
    assert refused.status_code == status
    assert says in refused.json()["error"]["message"]


def test_a_whole_reply_can_be_resumed_as_well(post):
    path, fields = chat(model=MODEL)
    del fields["stream_options"]
    answered = post(0, path, FIRST + json.dumps(fields).encode(), {LENGTH_HEADER: str(len(FIRST))})
    assert answered.json()["choices"][0]["message"]["content"] == "Hello, world!"
