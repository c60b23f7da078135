"""What routers ask: vLLM's render routes and SGLang's /server_info."""

import pytest

from distaff.server.testing import BOS, TURN

CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 5, "cache_salt": "tenant"},
        {"tools": [{"type": "function", "function": {"name": "now"}}], "tool_choice": "required"},
        {"chat_template_kwargs": {"style": "old"}, "stop": ["x"], "n": 3},
        {"stream": True, "min_tokens": 2, "max_tokens": 3, "logprobs": True, "top_logprobs": 2},
    ],
)
def test_a_chat_is_rendered_as_it_is_computed(http, engine, changes):
    """The ids and the numbers are those of the engine's request; no sequence is submitted."""
    told = http.post("/v1/chat/completions/render", json=CHAT | changes)
    assert told.status_code == 200 and engine.requests == []
    assert http.post("/v1/chat/completions", json=CHAT | changes).status_code == 200
    request, told = engine.requests[0], told.json()
    assert tuple(told["token_ids"]) == request.prompt
    numbers = told["sampling_params"]
    assert numbers.pop("n") == changes.get("n", 1) and numbers.pop("seed") == changes.get("seed")
    assert numbers["max_tokens"] == request.params.max_tokens
    assert numbers == {name: getattr(request.params, name) for name in numbers}
    assert (told["stream"], told["cache_salt"]) == (changes.get("stream", False), changes.get("cache_salt"))
    assert told["model"] == "org/fake-model" and told["request_id"].startswith("chatcmpl-")


def test_each_prompt_of_a_completion_is_rendered(http, engine):
    body = {"model": "tgi", "prompt": ["ab", "c"], "max_tokens": 4, "n": 2}
    told = http.post("/v1/completions/render", json=body).json()
    assert [each["token_ids"] for each in told] == [[BOS, 97, 98], [BOS, 99]]
    assert {each["sampling_params"]["max_tokens"] for each in told} == {4}
    assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": [{"role": "user", "content": "refuse me"}]}, 400),
        ({"temperature": 3}, 400),
        ({"model": "another"}, 404),
    ],
)
def test_what_would_be_refused_is_refused(http, body, status):
    replies = [http.post(f"/v1/chat/completions{end}", json=CHAT | body) for end in ("", "/render")]
    assert [reply.status_code for reply in replies] == [status, status]
    assert replies[0].json() == replies[1].json()


def test_nothing_is_rendered_before_the_model_is_loaded(http, engine):
    engine.state = "loading"
    assert http.post("/v1/chat/completions/render", json=CHAT).status_code == 503
    assert http.post("/v1/completions/render", json={"model": "tgi", "prompt": "a"}).status_code == 503


def test_a_conversation_ends_with_the_template(http):
    assert http.post("/v1/chat/completions/render", json=CHAT).json()["token_ids"][-1] == TURN


def test_sglangs_router_finds_the_name(http):
    told = http.get("/server_info").json()
    assert told["served_model_name"] == http.get("/v1/models").json()["data"][0]["id"]
    assert told["version"] == http.get("/version").json()["version"]
