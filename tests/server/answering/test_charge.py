"""Quotas, priorities and usage over HTTP: in every protocol, with the clients that people use."""

import asyncio
import json
import re
import time

import httpx
import openai
import pytest

from distaff.runtime.request import Request
from distaff.server.keys import Keys
from distaff.server.quotas.window import SECONDS
from distaff.server.text.generation import Generation

ROUTES = {
    "/v1/chat/completions": {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "tgi", "prompt": "hi", "max_tokens": 50},
    "/v1/responses": {"model": "tgi", "input": "hi"},
    "/v1/messages": {"model": "tgi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
    "/generate": {"inputs": "hi", "parameters": {"max_new_tokens": 50}},
    "/invocations": {"inputs": "hi", "parameters": {"max_new_tokens": 50}},
    "/v1/embeddings": {"model": "tgi", "input": "hi"},
}
CHAT = ROUTES["/v1/chat/completions"]


@pytest.fixture
def serve(make_server, tmp_path):
    """A server whose keys file has these lines, and a client with the key `key-first`."""

    def make(*lines: str, **settings: object) -> tuple[object, httpx.Client]:
        file = tmp_path / "keys"
        file.write_text("\n".join(lines) + "\n")
        server = make_server(keys=Keys(file=file), **settings)
        clients.append(httpx.Client(base_url=server.url, headers=bearer("key-first"), timeout=20))
        return server, clients[-1]

    clients: list[httpx.Client] = []
    yield make
    for client in clients:
        client.close()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_that_makes_tokens_counts(serve, route):
    """And is refused in its own shape, with the same times."""
    server, http = serve("key-first requests_per_minute=1 name=a", "key-other", embeddings=True)
    first, second = (http.post(route, json=ROUTES[route]) for _ in range(2))
    assert first.status_code == 200, first.text
    assert second.status_code == 429
    limits = "anthropic-ratelimit-requests-limit" if route == "/v1/messages" else "x-ratelimit-limit-requests"
    left = re.sub(r"limit(-requests)?$", r"remaining\1", limits)
    for answer in (first, second):
        assert (answer.headers[limits], answer.headers[left]) == ("1", "0")
    assert 0 < int(second.headers["retry-after-ms"]) / 1000 <= int(second.headers["retry-after"]) <= SECONDS
    body = second.json()
    if route == "/v1/messages":
        assert body["error"]["type"] == "rate_limit_error"
    elif route in ("/generate", "/invocations"):
        assert body["error_type"] == "overloaded" and "Rate limit reached" in body["error"]
    else:
        assert body["error"]["code"] == "rate_limit_exceeded" and body["error"]["type"] == "requests"
        assert "Limit 1, Used 1, Requested 1. Please try again in " in body["error"]["message"]
    other = http.post(route, json=ROUTES[route], headers=bearer("key-other"))
    assert other.status_code == 200 and limits not in other.headers
    metrics = http.get("/metrics").text
    assert 'distaff_refusals_total{reason="rate_limited"} 1.0' in metrics
    assert len(server.engine.requests) == 2


def test_tokens_that_were_not_generated_are_given_back(serve):
    """A prompt of 9 tokens and an answer of 13 and its end, of 100 that it could have had."""
    _, http = serve("key-first tokens_per_minute=130")
    asked = CHAT | {"max_tokens": 100}
    answers = [http.post("/v1/chat/completions", json=asked) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    used = answers[0].json()["usage"]["total_tokens"]
    assert answers[1].headers["x-ratelimit-remaining-tokens"] == str(130 - used)
    error = answers[1].json()["error"]
    assert error["type"] == "tokens" and f"Limit 130, Used {used}" in error["message"]
    smaller = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 20})
    assert smaller.status_code == 200
    assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 101}).status_code == 429


def test_a_prompt_beyond_the_quota_is_invalid_and_not_refused_for_a_time(serve):
    _, http = serve("key-first tokens_per_minute=5")
    answer = http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400 and "may use 5 tokens per minute" in answer.json()["error"]["message"]
    assert answer.headers["x-ratelimit-remaining-tokens"] == "5"


@pytest.mark.parametrize("route", ROUTES)
def test_what_the_engine_refuses_is_neither_charged_nor_logged(serve, tmp_path, route):
    log = tmp_path / "usage.jsonl"
    server, http = serve(
        "key-first requests_per_minute=1 tokens_per_minute=900", usage_log=log, embeddings=True
    )
    server.engine.capacity = 0
    assert http.post(route, json=ROUTES[route]).status_code in (429, 503, 529)
    metrics = http.get("/metrics").text
    assert "distaff_usage_requests_total{" not in metrics and "distaff_prompt_tokens_total 0.0" in metrics
    left = http.get("/v1/models").headers
    assert (left["x-ratelimit-remaining-requests"], left["x-ratelimit-remaining-tokens"]) == ("1", "900")
    assert (left["x-ratelimit-reset-requests"], left["x-ratelimit-reset-tokens"]) == ("0ms", "0ms")
    server.close()
    assert not log.read_text()


def test_of_texts_to_embed_those_that_were_submitted_count(serve, tmp_path):
    """Those of the group that was computed, not of the next one, which is refused."""
    log = tmp_path / "usage.jsonl"
    server, http = serve("key-first tokens_per_minute=900", usage_log=log, embeddings=True)
    server.engine.device_seconds = 0.5

    def fill(request: Request) -> list[int]:
        server.engine.capacity = 0
        return [1]

    server.engine.reply = fill
    body = {"model": "tgi", "input": ["hi"] * 40}
    refused = http.post("/v1/embeddings", json=body)
    assert refused.status_code == 503
    [line] = lines(log, 1)
    assert line["prompt_tokens"] == sum(len(each.prompt) for each in server.engine.requests) == 16 * 3
    assert line["device_seconds"] == 16 * 0.5 and line["finish"] == ["overloaded"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == str(900 - 16 * 3)


def test_what_is_refused_or_invalid_does_not_count(serve):
    server, http = serve("key-first requests_per_minute=1")
    server.engine.capacity = 0
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 503
    assert http.post("/v1/chat/completions", json=CHAT | {"n": 99}).status_code == 400
    assert http.post("/tokenize", json={"prompt": "hi"}).status_code == 200
    server.engine.capacity = 64
    assert http.get("/v1/models").headers["x-ratelimit-remaining-requests"] == "1"
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_requests_in_progress_are_limited(serve):
    server, http = serve("key-first concurrent=1")
    server.engine.gate.clear()
    with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
        refused = http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "concurrent"
        assert "x-ratelimit-limit-requests" not in refused.headers
        server.loop.call_soon_threadsafe(server.engine.gate.set)
        stream.read()
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_openais_client_waits_and_succeeds(serve, monkeypatch):
    """It reads the times of a refusal; a minute is one second here."""
    monkeypatch.setattr("distaff.server.quotas.window.SECONDS", 1.0)
    _, http = serve("key-first requests_per_minute=1")
    with openai.OpenAI(base_url=f"{http.base_url}/v1/", api_key="key-first", max_retries=1) as client:
        started = time.monotonic()
        for _ in range(3):
            client.chat.completions.create(**CHAT)
        assert time.monotonic() - started >= 2.0
    with (
        openai.OpenAI(base_url=f"{http.base_url}/v1/", api_key="key-first", max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="Limit 1, Used 1"),
    ):
        client.chat.completions.create(**CHAT)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.startswith("/v1")])
def test_the_priority_of_a_request_is_not_better_than_its_keys(serve, route):
    server, http = serve("key-first priority=2 weight=3", "key-other", embeddings=True)
    asked = [] if route == "/v1/messages" else [-7, 2, 9]
    for priority in asked:
        assert http.post(route, json=ROUTES[route] | {"priority": priority}).status_code == 200
    http.post(route, json=ROUTES[route])
    http.post(route, json=ROUTES[route], headers=bearer("key-other"))
    seen = [(each.priority, each.weight) for each in server.engine.requests]
    assert seen == [*((max(2, priority), 3.0) for priority in asked), (2, 3.0), (0, 1.0)]


def test_without_keys_a_request_has_the_priority_that_it_asks_for(server, http):
    assert http.post("/v1/chat/completions", json=CHAT | {"priority": -5}).status_code == 200
    assert server.engine.requests[-1].priority == -5
    answer = http.post("/v1/chat/completions", json=CHAT | {"priority": 1.5})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "priority"


def lines(path, count: int) -> list[dict[str, object]]:
    """The log of usage, once it has so many lines."""
    deadline = time.monotonic() + 10
    while len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_usage_is_logged_and_counted_by_the_name_of_the_key(serve, tmp_path):
    log = tmp_path / "usage.jsonl"
    server, http = serve("key-first name=team-a", "key-other", usage_log=log, embeddings=True)
    server.engine.cached, server.engine.waited, server.engine.device_seconds = 4, 0.25, 0.5
    whole = http.post("/v1/chat/completions", json=CHAT | {"n": 2})
    http.post("/v1/embeddings", json=ROUTES["/v1/embeddings"], headers=bearer("key-other"))
    first, second = lines(log, 2)
    usage = whole.json()["usage"]
    assert first["request_id"] == whole.headers["x-request-id"] and first["name"] == "team-a"
    assert (first["prompt_tokens"], first["completion_tokens"], first["cached_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )
    assert first["finish"] == ["stop", "stop"] and first["route"] == "/v1/chat/completions"
    assert first["device_seconds"] == 0.5 * usage["completion_tokens"]
    assert first["page_seconds"] == 2 * first["device_seconds"] and first["queue_seconds"] == 0.25
    assert 0 < first["first_token_seconds"] < first["seconds"] < time.time() - first["time"] + 20
    assert (second["name"], second["completion_tokens"], second["route"]) == ("", 0, "/v1/embeddings")
    assert len(first["key"]) == 8 and first["key"] != second["key"]
    assert "key-first" not in log.read_text() and "hi" not in first.values()
    metrics = http.get("/metrics").text
    for figure in ("prompt_tokens", "cached_tokens", "completion_tokens", "device_seconds", "page_seconds"):
        assert f'distaff_usage_{figure}_total{{key="team-a"}} {float(first[figure])}' in metrics
    assert 'distaff_usage_requests_total{key="-"} 1.0' in metrics


def test_a_call_that_ends_early_is_logged_with_what_it_has_used(serve, tmp_path):
    log = tmp_path / "usage.jsonl"
    server, http = serve("key-first concurrent=1 tokens_per_minute=5000", usage_log=log)
    server.engine.reply, server.engine.device_seconds = "x" * 4000, 0.5
    with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
        next(stream.iter_bytes())
    (gone,) = lines(log, 1)
    assert gone["finish"] == ["client_gone"] and gone["device_seconds"] == 0.5 * gone["completion_tokens"] > 0
    server.engine.reply, server.engine.fail_after = "y", 0
    assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 5}).status_code == 500
    assert lines(log, 2)[1]["finish"] == ["engine_lost"]


def test_tokens_count_when_they_have_arrived_not_when_they_are_read(serve, tmp_path, monkeypatch):
    """All 100 had come when the second one was read, which ended the answer."""
    read = Generation.next

    async def late(generation: Generation, silence: float) -> object:
        while generation.generated < 100:
            await asyncio.sleep(0)
        return await read(generation, silence)

    monkeypatch.setattr(Generation, "next", late)
    log = tmp_path / "usage.jsonl"
    server, http = serve("key-first tokens_per_minute=5000 name=a", usage_log=log)
    server.engine.reply, server.engine.device_seconds = "x" * 500, 0.5
    answer = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 100, "stop": "xx"})
    [line] = lines(log, 1)
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert line["completion_tokens"] == 100 and line["device_seconds"] == 50.0
    left = http.get("/v1/models").headers["x-ratelimit-remaining-tokens"]
    assert int(left) == 5000 - line["prompt_tokens"] - 100
    assert 'distaff_usage_completion_tokens_total{key="a"} 100.0' in http.get("/metrics").text


@pytest.mark.parametrize("route", [route for route in ROUTES if route.startswith("/v1")])
def test_an_answer_tells_what_it_has_used_if_asked(serve, route):
    server, http = serve("key-first", embeddings=True)
    server.engine.device_seconds = 0.5
    assert "distaff" not in http.post(route, json=ROUTES[route]).json()["usage"]
    asked = http.post(route, json=ROUTES[route], headers={"x-distaff-usage": "full"})
    own = asked.json()["usage"]["distaff"]
    assert set(own) == {"device_seconds", "page_seconds", "queue_seconds"}
    assert own["page_seconds"] == 2 * own["device_seconds"] > 0


def test_a_stream_tells_it_in_its_usage(serve):
    server, http = serve("key-first")
    server.engine.device_seconds = 0.5
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    text = http.post("/v1/chat/completions", json=body, headers={"x-distaff-usage": ""}).text
    chunks = [json.loads(event[6:]) for event in text.split("\n\n") if event.startswith("data: {")]
    usage = chunks[-1]["usage"]
    assert usage["distaff"]["device_seconds"] == 0.5 * usage["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
