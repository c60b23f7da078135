"""OpenAI's own clients against the real model: the seed example, as it is but for base_url and key."""

import asyncio
import json
import re

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

from ..javascript import needs_chromium, run_in_browser, run_javascript
from .conftest import Server

pytestmark = pytest.mark.serial

CAPITAL = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


def test_the_seed_example_streams_an_answer(client: OpenAI) -> None:
    """The lines people copy from the announcement of the Messages API print text, and the text is right."""
    chat_completion = client.chat.completions.create(
        model="tgi", messages=CAPITAL, stream=True, max_tokens=500, temperature=0
    )
    chunks = list(chat_completion)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "Paris" in text
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"


def test_a_stream_folds_to_the_whole_reply(client: OpenAI) -> None:
    """Streamed and whole are one path: the same text, the same usage."""
    body = dict(model="tgi", messages=CAPITAL, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**body)
    with client.chat.completions.stream(**body, stream_options={"include_usage": True}) as stream:
        folded = stream.get_final_completion()
    assert folded.choices[0].message.content == whole.choices[0].message.content
    assert folded.usage == whole.usage


def test_a_response_says_what_a_chat_completion_says(client: OpenAI) -> None:
    """Another protocol, the same text, counted alike; streamed and whole."""
    chatted = client.chat.completions.create(model="tgi", messages=CAPITAL, max_tokens=24, temperature=0)
    body = dict(model="tgi", input=CAPITAL, max_output_tokens=24, temperature=0)
    whole = client.responses.create(**body)
    with client.responses.stream(**body) as stream:
        folded = stream.get_final_response()
    text = chatted.choices[0].message.content
    assert text == whole.output_text == folded.output_text
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        chatted.usage.prompt_tokens,
        chatted.usage.completion_tokens,
    )


def test_seeds_repeat_and_choices_differ(client: OpenAI) -> None:
    """One seed gives the same three choices again, and the choices are not copies of one another."""
    body = dict(model="tgi", messages=CAPITAL, max_tokens=16, n=3, seed=7, temperature=1.2)
    first, second = (client.chat.completions.create(**body) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1


def test_logprobs_are_of_the_text(client: OpenAI) -> None:
    """The bytes of the reported tokens are the answer, and the chosen one leads a greedy answer's list."""
    reply = client.chat.completions.create(
        model="tgi", messages=CAPITAL, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = reply.choices[0].logprobs.content
    said = b"".join(bytes(entry.bytes or ()) for entry in entries).decode()
    assert said == reply.choices[0].message.content
    assert len(entries) == reply.usage.completion_tokens
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    """The error is the one that the client has a class for."""
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=CAPITAL)
    assert caught.value.code == "model_not_found"


async def test_the_async_client_streams_side_by_side(server: Server) -> None:
    """Several conversations at once, each as if alone."""
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-") as client:

        async def ask() -> str:
            stream = await client.chat.completions.create(
                model="tgi", messages=CAPITAL, stream=True, max_tokens=24, temperature=0
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*(ask() for _ in range(6)))
    assert all("Paris" in answer for answer in answers)


@pytest.mark.clients
def test_the_javascript_clients_tools(f32_server: Server) -> None:
    """`runTools` calls and answers, a call is streamed, a schema held, a stream aborted."""
    output = run_javascript("tools.mjs", f"{f32_server.url}/v1")
    assert output["called"] and all(given["city"] in ("Paris", "Rome") for given in output["called"])
    assert set(output["results"]) == {"21 C and sunny"}
    assert output["fragments"] == output["arguments"]
    for text in (output["arguments"], output["parsed"]):
        assert json.loads(text)["city"] in ("Paris", "Rome")
    assert output["aborted"] in (3, "APIUserAbortError")


@pytest.mark.clients
def test_the_javascript_clients_responses(f32_server: Server) -> None:
    """The Responses API streamed, folded by the helper and whole; a call, and what it returned."""
    output = run_javascript("responses.mjs", f"{f32_server.url}/v1")
    assert "Paris" in output["text"]
    assert output["text"] == output["folded"] == output["whole"]
    assert (output["kinds"][0], output["kinds"][-1]) == ("response.created", "response.completed")
    assert (output["call"]["type"], output["call"]["name"]) == ("function_call", "get_weather")
    assert json.loads(output["call"]["arguments"])["city"] in ("Paris", "Rome")
    assert output["returned"] in ("completed", "incomplete")


@pytest.mark.clients
def test_the_javascript_client(f32_server: Server) -> None:
    """Streaming, the stream helper, a whole reply, an error and a break, from OpenAI's JavaScript client."""
    output = run_javascript("seed.mjs", f"{f32_server.url}/v1")
    assert "Paris" in output["text"]
    assert output["text"] == output["folded"] == output["whole"]
    assert (output["roles"], output["finishes"], output["heard"]) == (1, ["stop"], 3)
    assert output["error"] == {"status": 404, "code": "model_not_found", "name": "NotFoundError"}


@needs_chromium
@pytest.mark.clients
def test_the_chat_page(f32_server: Server) -> None:
    """A person asks in a browser; the tokens are coloured, and the figures are of the real engine."""
    output = run_in_browser("model", f32_server.url)
    assert "Paris" in output["text"]
    assert re.match(
        r"\d+ tokens · [\d.]+ tokens/s · first token [\d.]+ s · prompt \d+ tokens", output["figures"]
    )
