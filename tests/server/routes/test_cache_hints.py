"""The prefix cache over HTTP: hints of conversations, what the usage reports, and why a prompt missed."""

import pytest

from distaff.runtime.request import CacheMiss


@pytest.mark.parametrize(
    ("miss", "told"),
    [
        (None, "hit 7 tokens"),
        (
            CacheMiss(at=9, reason="changed"),
            "miss at token 9: other prompts with this prefix differ",
        ),
        (CacheMiss(at=8, reason="evicted"), "miss at token 8: its pages were evicted"),
        (CacheMiss(at=0, reason="off"), "miss at token 0: the prefix cache is off"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}),
    ],
)
def test_why_a_prompt_missed_is_told_on_request(http, engine, path, body, stream, miss, told):
    """In a header, and only then; the answer is the same."""
    engine.cached, engine.miss = 7, miss
    body = {"model": "tgi", "stream": stream, "seed": 1, **body}
    plain = http.post(path, json=body)
    asked = http.post(path, json=body, headers={"x-distaff-cache": "explain"})
    assert "x-distaff-cache" not in plain.headers
    assert asked.headers["x-distaff-cache"].startswith(told)
    assert len(asked.content) == len(plain.content) and asked.status_code == 200


def test_a_stream_that_is_explained_fails_with_a_status(http, engine):
    engine.fail_after = 0
    body = {"model": "tgi", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    assert http.post("/v1/chat/completions", json=body, headers={"x-distaff-cache": "1"}).status_code == 500


TURN = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
KEY = {"prompt_cache_key": "k"}
TEXT = {"type": "text", "text": "x"}
MARK = {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "session", "seconds"),
    [
        ("/v1/chat/completions", TURN, {}, "", 0),
        ("/v1/chat/completions", TURN | KEY, {}, "k", 300),
        ("/v1/chat/completions", TURN | {"prompt_cache_retention": "24h"}, {}, "", 86_400),
        ("/v1/chat/completions", TURN, {"x-session-id": "s"}, "s", 300),
        ("/v1/completions", {"model": "tgi", "prompt": "x"} | KEY, {}, "k", 300),
        ("/v1/responses", {"model": "tgi", "input": "x"} | KEY, {"session_id": "s"}, "k", 300),
        ("/v1/messages", TURN | {"metadata": {"user_id": "u"}}, {}, "u", 0),
        ("/v1/messages", TURN | {"metadata": {"user_id": "u"}}, {"x-session-id": "s"}, "s", 300),
        ("/v1/messages", TURN | {"cache_control": {"type": "ephemeral"}}, {}, "", 300),
        (
            "/v1/messages",
            TURN | {"system": [TEXT | {"cache_control": MARK}]},
            {},
            "",
            3600,
        ),
        ("/generate", {"inputs": "x"}, {"x-session-id": "s"}, "s", 300),
    ],
)
def test_hints_of_the_conversation_reach_the_engine(http, engine, path, body, headers, session, seconds):
    """With the client's name, so that nobody steers another's requests."""
    assert http.post(path, json=body, headers=headers).status_code == 200
    [request] = engine.requests
    assert request.session == (f"127.0.0.1 {session}" if session else "")
    assert request.keep_seconds == seconds


def test_what_was_read_and_written_is_in_the_usage(http, engine):
    """In each protocol's words; Anthropic's three counts add up to the prompt."""
    engine.cached, engine.written = 3, 2
    chat = http.post("/v1/chat/completions", json=TURN).json()["usage"]
    details = chat["prompt_tokens_details"]
    assert (details["cached_tokens"], details["cache_write_tokens"]) == (3, 2)
    response = http.post("/v1/responses", json={"model": "tgi", "input": "hi"}).json()["usage"]
    assert response["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 2}
    message = http.post("/v1/messages", json=TURN).json()["usage"]
    counts = [message[f"{name}input_tokens"] for name in ("cache_read_", "cache_creation_", "")]
    assert counts[:2] == [3, 2] and sum(counts) == chat["prompt_tokens"]
