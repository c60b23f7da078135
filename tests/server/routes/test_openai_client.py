"""The official Python client, strict about every type, finds nothing to complain of."""

import asyncio

import openai
import pytest

MODEL = "org/fake-model"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def async_client(server):
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=20,
        _strict_response_validation=True,
    ) as client:
        yield client


def test_a_whole_reply(client):
    reply = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert reply.choices[0].message.content == "Hello, world!"
    assert reply.usage.total_tokens == 23
    assert reply._request_id.startswith("req_")


def test_a_stream(client):
    with client.chat.completions.create(model="tgi", messages=HELLO, stream=True) as chunks:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"


@pytest.mark.parametrize("n", [1, 3])
def test_the_stream_helper(client, n):
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, n=n, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert [choice.message.content for choice in final.choices] == ["Hello, world!"] * n
    assert [choice.message.role for choice in final.choices] == ["assistant"] * n
    assert final.usage.completion_tokens == 14 * n
    assert all(len(choice.logprobs.content) == 14 for choice in final.choices)


def test_the_raw_response(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.status_code == 200
    assert raw.request_id == raw.headers["x-request-id"]
    assert raw.parse().choices[0].finish_reason == "stop"


async def test_the_async_client(async_client):
    reply = await async_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert reply.choices[0].message.content == "Hello, world!"
    chunks = await async_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == "Hello, world!"


async def test_the_async_stream_helper(async_client):
    async with async_client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello, world!"


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL, "tgi"]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.owned_by, model.object) == (MODEL, "distaff", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


@pytest.mark.parametrize("path", ["org/fake-model", "org%2Ffake-model"])
def test_a_models_slashes_may_be_escaped_or_not(http, path):
    assert http.get(f"/v1/models/{path}").json()["max_model_len"] == 4096


def test_errors_arrive_as_the_clients_own(client, engine):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3)
    assert (bad.value.code, bad.value.param) == ("decimal_above_max_value", "temperature")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    engine.fail_after = 2
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    with pytest.raises(openai.APIError) as failed:
        list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert (failed.value.code, failed.value.type) == ("engine_error", "server_error")


def test_logprobs(client):
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=20)
    entries = reply.choices[0].logprobs.content
    *said, end = entries
    assert b"".join(bytes(entry.bytes) for entry in said) == b"Hello, world!"
    assert (end.token, end.bytes) == ("<|257|>", None)
    assert len(entries) == reply.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 20 for entry in entries)
    values = [top.logprob for top in entries[0].top_logprobs]
    assert values == sorted(values, reverse=True)


def test_parameters_reach_the_engine(client, engine):
    client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_completion_tokens=7,
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=42,
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        n=2,
        extra_body={"top_k": 40, "min_p": 0.05, "ignore_eos": True, "repetition_penalty": 1.2}
        | {"stop_token_ids": [10, 9], "allowed_token_ids": [65, 66], "min_tokens": 3},
        logit_bias={"5": -100, "7": 2.5},
    )
    first, second = engine.requests
    assert (first.choice, second.choice) == (0, 1)
    assert (
        first.params
        == second.params
        == type(first.params)(
            max_tokens=7,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            seed=42,
            frequency_penalty=0.1,
            presence_penalty=-0.2,
            repetition_penalty=1.2,
            logit_bias=((5, -100.0), (7, 2.5)),
            allowed_ids=(65, 66),
            min_tokens=3,
            stop_ids=(9, 10),
        )
    )


def test_choices_of_a_silent_seed_share_one(client, engine):
    client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    client.chat.completions.create(model=MODEL, messages=HELLO)
    one, two, three = (request.params.seed for request in engine.requests)
    assert one == two != three


def test_silence_samples_as_the_checkpoint_recommends(client, engine, server):
    class Recommended:
        temperature, top_p, top_k, min_p, repetition_penalty = 0.6, None, 20, None, 1.3

    before, server.served.defaults = server.served.defaults, Recommended()
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO)
        client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=1, extra_body={"repetition_penalty": 1.0}
        )
    finally:
        server.served.defaults = before
    silent, said = (request.params for request in engine.requests)
    assert (silent.temperature, silent.top_p, silent.top_k, silent.min_p) == (0.6, 1.0, 20, 0.0)
    assert silent.repetition_penalty == 1.3
    assert (said.temperature, said.repetition_penalty) == (1.0, 1.0)


async def test_many_streams_at_once_do_not_mix(async_client, engine):
    """Every stream hears its own prompt, whoever else is talking."""
    engine.reply = lambda request: request.prompt[1:-1]

    async def echo(i: int) -> str:
        messages = [{"role": "user", "content": f"stream {i} " * 5}]
        chunks = await async_client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    replies = await asyncio.gather(*map(echo, range(40)))
    assert replies == [f"user:{f'stream {i} ' * 5}" for i in range(40)]
