"""What clients ask for beyond plain chat, of the real model: scored echoes, structured output, forced calls.

SmolLM2-135M obeys little by itself; here it is held to what was asked, so that mechanics and validity can be
asserted whatever it says.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from openai import BadRequestError, OpenAI
from pydantic import BaseModel

from distaff.checkpoints import load_parameters, load_tokenizer, open_checkpoint, resolve

from ..model.reference import reference_from
from .conftest import Server

pytestmark = pytest.mark.serial
TEXT = "A distaff holds the unspun fibres, e.g. flax, while thread is drawn from them. Größe: 12.5 µm 🧶"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_an_echoed_prompts_log_probabilities_are_transformers_own(f32_server: Server) -> None:
    """As lm-eval asks for them: ids in, `echo`, `logprobs`; within 1e-3 of the reference's, in f32."""
    path = resolve(None)
    checkpoint, tokenizer = open_checkpoint(path), load_tokenizer(path)
    reference = reference_from(checkpoint.config, load_parameters(checkpoint, np.dtype("float32")))
    ids = tokenizer.encode(TEXT * 6)
    with torch.no_grad():
        expected = torch.log_softmax(reference(torch.tensor([ids])).logits[0], -1).numpy()
    with OpenAI(base_url=f"{f32_server.url}/v1/", api_key="-", max_retries=0) as client:
        reply = client.completions.create(
            model="tgi", prompt=ids, max_tokens=1, logprobs=1, echo=True, temperature=0
        )
    told = reply.choices[0].logprobs
    assert told.token_logprobs[0] is None and len(told.tokens) == len(ids) + 1
    ours = np.array(told.token_logprobs[1 : len(ids)])
    np.testing.assert_allclose(ours, expected[np.arange(len(ids) - 1), ids[1:]], atol=1e-3)
    best = [max(top.values()) for top in told.top_logprobs[1 : len(ids)]]
    np.testing.assert_allclose(best, expected[:-1].max(-1), atol=1e-3)


def test_structured_output_parses(client: OpenAI) -> None:
    """The client's own helper: a pydantic model goes out as a strict schema and comes back as an object."""
    reply = client.chat.completions.parse(
        model="tgi",
        messages=ask("Describe Bob, who is 33 years old."),
        response_format=Person,
        temperature=0,
        max_tokens=100,
    )
    assert isinstance(reply.choices[0].message.parsed, Person)
    assert reply.choices[0].finish_reason == "stop"


def test_many_constrained_streams_are_all_valid(client: OpenAI) -> None:
    """Hot, several choices each, beside free ones: what ended by itself is valid, what was cut says so."""

    def one(number: int) -> None:
        reply = client.chat.completions.create(
            model="tgi",
            messages=ask(f"Invent person number {number}."),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": Person.model_json_schema(), "strict": True},
            },
            temperature=1.3,
            seed=number,
            n=2,
            max_tokens=80,
            logprobs=True,
        )
        for choice in reply.choices:
            text = choice.message.content
            said = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
            assert said.decode() == text
            if choice.finish_reason == "stop":
                Person.model_validate_json(text)
            else:
                assert choice.finish_reason == "length" and len(choice.logprobs.content) >= 60

    with ThreadPoolExecutor(8) as pool:
        free = pool.submit(
            client.chat.completions.create, model="tgi", messages=ask("Tell me a story."), max_tokens=60
        )
        assert list(pool.map(one, range(6))) == [None] * 6
        assert free.result().usage.completion_tokens > 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_is_valid(client: OpenAI, choice) -> None:
    """Streamed through the client's helper; its result goes back and is answered."""
    question = ask("How is the weather in Paris, in Celsius?")
    with client.chat.completions.stream(
        model="tgi",
        messages=question,
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0.7,
        seed=1,
        max_tokens=100,
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert arguments["unit"] in ("C", "F") and set(arguments) == {"city", "unit"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 C and sunny"}
    said = message.model_dump(include={"role", "content", "tool_calls"})
    answer = client.chat.completions.create(
        model="tgi", messages=[*question, said, result], tools=[WEATHER], tool_choice="none", max_tokens=30
    )
    assert answer.choices[0].message.content


def test_guided_output_is_one_of_what_was_allowed(client: OpenAI) -> None:
    """Choices and regular expressions, in vLLM's words."""

    def said(**extra) -> str:
        reply = client.chat.completions.create(
            model="tgi", messages=ask("Yes or no? When?"), temperature=1.5, max_tokens=30, extra_body=extra
        )
        assert reply.choices[0].finish_reason == "stop"
        return reply.choices[0].message.content

    assert said(guided_choice=["yes", "no", "perhaps"]) in ("yes", "no", "perhaps")
    hours, minutes = said(guided_regex=r"[0-2]\d:[0-5]\d").split(":")
    assert 0 <= int(hours) < 30 and 0 <= int(minutes) < 60


def test_a_bad_schema_costs_nobody_anything(client: OpenAI) -> None:
    """Refused at once; the server serves on."""
    with pytest.raises(BadRequestError, match="nonsense"):
        client.chat.completions.create(
            model="tgi",
            messages=ask("x"),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            },
        )
    assert client.chat.completions.create(model="tgi", messages=ask("Hi"), max_tokens=4).choices


def test_the_last_message_is_continued(client: OpenAI) -> None:
    """The answer goes on from the words that were put into the model's mouth."""
    messages = [*ask("What is the capital of France?"), {"role": "assistant", "content": "The capital of"}]
    reply = client.chat.completions.create(
        model="tgi",
        messages=messages,
        temperature=0,
        max_tokens=8,
        extra_body={"continue_final_message": True},
    )
    assert reply.choices[0].message.content.startswith(" France")


def test_the_prompt_of_several_choices_is_computed_once(server: Server, client: OpenAI) -> None:
    """All but the last, unfinished page of it: the others find what the first has computed."""
    before = server.metric("distaff_engine_prompt_tokens_total")
    text = " ".join(f"word{n}" for n in range(90))
    reply = client.chat.completions.create(model="tgi", messages=ask(text), n=6, max_tokens=4)
    prompt = reply.usage.prompt_tokens
    computed = server.metric("distaff_engine_prompt_tokens_total") - before
    cached = reply.usage.prompt_tokens_details.cached_tokens
    assert prompt - cached > 150 and prompt - cached <= computed <= prompt + 5 * 16
