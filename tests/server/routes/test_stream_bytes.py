"""The rules that most servers break, one test each, and the exact shape of every chunk."""

import json
import re

import pytest

TEMPLATE_KEYS = [
    "id",
    "object",
    "created",
    "model",
    "service_tier",
    "system_fingerprint",
    "choices",
]


def content(chunks, index=0):
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def test_the_exact_sequence_of_a_stream(stream):
    chunks = stream(max_tokens=2)
    assert [chunk["choices"][0] for chunk in chunks] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        },
        {"index": 0, "delta": {"content": "H"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": "e"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"},
    ]


def test_every_chunk_has_the_same_constants_in_the_same_order(stream):
    chunks = stream()
    assert {tuple(chunk) for chunk in chunks} == {tuple(TEMPLATE_KEYS)}
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    first = chunks[0]
    assert re.fullmatch(r"chatcmpl-[A-Za-z0-9]{29}", first["id"])
    assert type(first["created"]) is int
    assert first["object"] == "chat.completion.chunk"
    assert first["service_tier"] == "default"
    assert first["system_fingerprint"] == "fp_0123456789"


@pytest.mark.parametrize("n", [1, 3])
def test_the_role_is_said_once_per_choice(stream, n):
    """Rule 1: helpers concatenate, a second role gives `assistantassistant`."""
    chunks = stream(n=n)
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    assert roles == list(range(n))


def test_choices_are_first_heard_of_in_order(stream, engine):
    """Rule 2: index 1 before index 0 is an IndexError in the official helper."""

    def reply(request):
        return b"ab" if request.choice else b"a slow one"

    engine.reply = reply
    order = [c["choices"][0]["index"] for c in stream(n=3)]
    assert list(dict.fromkeys(order)) == [0, 1, 2]


def test_choices_wait_for_their_turn_though_the_engine_answers_them_first(stream, engine):
    """Choice 2 is done before choice 0 has begun: it is held back, and nothing is lost."""
    ready = engine.submit

    def submit(requests):
        streams = ready(requests)
        for events, request in zip(streams, requests, strict=True):
            events.delay = 0.2 * (2 - request.choice)
        return streams

    engine.submit = submit
    engine.reply = lambda request: b"xyz"[request.choice :]
    try:
        chunks = stream(n=3)
    finally:
        engine.__dict__.pop("submit")
    order = [c["choices"][0]["index"] for c in chunks]
    assert list(dict.fromkeys(order)) == [0, 1, 2]
    assert [content(chunks, i) for i in range(3)] == ["xyz", "yz", "z"]


@pytest.mark.parametrize("n", [1, 2])
def test_each_choice_has_one_finish_reason_in_a_chunk_of_its_own(stream, n):
    """Rule 3."""
    ends = [c["choices"][0] for c in stream(n=n) if c["choices"][0]["finish_reason"]]
    assert sorted(end["index"] for end in ends) == list(range(n))
    assert all(end["delta"] == {} and end["logprobs"] is None for end in ends)


def test_usage_comes_last_and_only_when_asked_for(stream):
    """Rule 5: a chunk after the usage chunk would erase it."""
    assert all("usage" not in chunk and chunk["choices"] for chunk in stream())
    *chunks, last = stream(stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 14,
        "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_continuous_usage_counts_as_it_goes(stream):
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    chunks = stream(max_tokens=3, stream_options=options)
    assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 1, 2, 3, 3, 3]


def test_no_field_but_data(ask):
    """Rules 6 and 7: no `id:`, `retry:` or `event:`, and a blank line after every event."""
    text = ask(stream=True).text
    assert text.endswith("data: [DONE]\n\n")
    lines = text.split("\n")
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert all(blank == "" for blank in lines[1::2])


@pytest.mark.parametrize("character", ["\u0085", "\u2028", "\u2029"])
def test_line_separators_are_escaped(ask, engine, character):
    """Rule 8: some clients split lines at them."""
    engine.reply = f"a{character}b“"
    for streamed in (True, False):
        body = ask(stream=streamed).text
        assert character not in body
        assert f"\\u{ord(character):04x}" in body
    assert ask().json()["choices"][0]["message"]["content"] == f"a{character}b“"


def test_an_error_is_decided_before_the_status_line(ask):
    """Rule 9: a 200 with a JSON body gives the official client no chunks and no exception."""
    reply = ask(stream=True, temperature=3)
    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("how", ["lost", "row"])
def test_a_failure_in_mid_stream_is_an_error_event_then_done(ask, engine, how):
    """Rule 10, and nothing of the cause is told."""
    setattr(engine, "fail_after" if how == "lost" else "error_after", 3)
    reply = ask(stream=True)
    *_, error, done, _ = reply.text.split("\n\n")
    assert json.loads(error.removeprefix("data: ")) == {
        "error": {
            "message": "The server had an error while processing your request. Sorry about that!",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
    }
    assert done == "data: [DONE]"
    assert engine.running == {}


def test_a_failure_before_the_answer_is_a_status(ask, engine):
    engine.fail_after = 3
    reply = ask()
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "engine_error"


def test_characters_are_whole(stream, engine):
    engine.reply = "é🙂x"
    pieces = [c["choices"][0]["delta"].get("content") for c in stream()]
    assert pieces == ["", "é", "🙂", "x", None]


def test_an_unfinished_character_becomes_the_replacement_character(ask, stream, engine):
    engine.reply = "a🙂".encode()[:-1]
    assert content(stream()) == "a\ufffd"
    assert ask().json()["choices"][0]["message"]["content"] == "a\ufffd"


def test_headers_of_a_stream(ask):
    headers = ask(stream=True).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in headers
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["openai-processing-ms"].isdigit()
    assert headers["openai-version"] == "2020-10-01"


def test_silence_is_filled_with_comments(ask, engine, monkeypatch):
    monkeypatch.setattr("distaff.server.answering.respond.KEEP_ALIVE_SECONDS", 0.05)
    engine.delay = 0.12
    reply = ask(stream=True, max_tokens=1)
    assert reply.text.startswith(": keep-alive\n\n: keep-alive\n\ndata: {")


def test_the_whole_reply_is_the_stream_folded(ask, engine):
    body = ask().json()
    assert list(body) == [
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "service_tier",
        "system_fingerprint",
    ]
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello, world!",
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize("options", [{}, {"stop": ["wor", "!"]}, {"max_tokens": 5}, {"logprobs": True}])
def test_streamed_is_folded(ask, stream, options):
    chunks = stream(n=2, **options)
    body = ask(n=2, **options).json()
    for choice in body["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert content(chunks, choice["index"]) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        entries = [e for c in mine if c["logprobs"] for e in c["logprobs"]["content"]]
        assert entries == (choice["logprobs"] or {"content": []})["content"]


def test_the_prompt_is_counted_once_and_the_end_tokens_too(ask):
    usage = ask(n=3).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 42, 51)


def test_an_empty_answer(stream, ask, engine):
    engine.reply = ""
    assert [c["choices"][0]["delta"] for c in stream()] == [
        {"role": "assistant", "content": "", "refusal": None},
        {},
    ]
    body = ask().json()
    assert body["choices"][0]["message"]["content"] == ""
    assert body["usage"]["completion_tokens"] == 1
