"""POST /v1/completions: prompts of every kind, echoed and scored, in OpenAI's shapes and words."""

import functools
import json

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.server.testing import BOS, EOS, TURN

MODEL = "org/fake-model"


@pytest.fixture
def complete(http):
    """Posts a completion: a usual body with some keys changed (`...` drops one)."""

    def post(**changes):
        body = {"model": MODEL, "prompt": "Say", "max_tokens": 40} | changes
        return http.post("/v1/completions", json={k: v for k, v in body.items() if v is not ...})

    return post


@pytest.fixture
def chunks(complete):
    """The chunks of a streamed one."""

    def read(**changes):
        *events, done, nothing = complete(stream=True, **changes).content.split(b"\n\n")
        assert (done, nothing) == (b"data: [DONE]", b"")
        return [json.loads(event.removeprefix(b"data: ")) for event in events]

    return read


def test_a_whole_reply(complete):
    """Every key, in OpenAI's order."""
    body = complete().json()
    assert list(body) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"text": "Hello, world!", "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (4, 14)


def test_a_stream(chunks):
    """One choice a chunk, the reason in the last, the usage after it."""
    *said, last, usage = chunks(stream_options={"include_usage": True})
    assert all(len(chunk["choices"]) == 1 and chunk["usage"] is None for chunk in [*said, last])
    assert {chunk["object"] for chunk in said} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in said) == "Hello, world!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in [*said, last]] == [None] * 13 + ["stop"]
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 18


def test_the_default_is_sixteen_tokens_or_what_fits(complete, engine):
    """As OpenAI has it; near the end of the context silence asks for less."""
    engine.reply = "x" * 100
    assert complete(max_tokens=...).json()["usage"]["completion_tokens"] == 16
    reply = complete(max_tokens=..., prompt=[65] * 4090)
    assert reply.json()["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [(BOS, 97, 98)]),
        (["ab", "c"], [(BOS, 97, 98), (BOS, 99)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
        ("", [(BOS,)]),
        (..., [(BOS,)]),
        ([""], [(BOS,)]),
    ],
)
def test_prompts_of_every_kind(complete, engine, prompt, prompts):
    """Strings begin as the tokenizer begins them, ids are taken as they are."""
    body = complete(prompt=prompt).json()
    assert [request.prompt for request in engine.requests] == prompts
    assert [choice["index"] for choice in body["choices"]] == list(range(len(prompts)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_special_tokens_can_be_left_out(complete, engine):
    complete(prompt="ab", add_special_tokens=False)
    assert engine.requests[0].prompt == (97, 98)


def test_prompts_times_choices(complete, engine):
    """Index p·n + k; each prompt is counted once."""
    engine.reply = lambda request: f"{chr(request.prompt[0])}{request.choice}".encode()
    body = complete(prompt=[[65], [66]], n=2).json()
    assert [choice["text"] for choice in body["choices"]] == ["A0", "A1", "B2", "B3"]
    assert body["usage"]["prompt_tokens"] == 2 and body["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("streamed", [False, True])
def test_log_probabilities(complete, chunks, streamed):
    """Lists of one length; the chosen token is among the alternatives, with the very same number."""
    if streamed:
        told = [chunk["choices"][0]["logprobs"] for chunk in chunks(logprobs=2)]
        logprobs = {key: [item for each in told for item in each[key]] for key in told[0]}
    else:
        logprobs = complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert list(logprobs) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    assert "".join(logprobs["tokens"]) == "Hello, world!<|257|>"
    assert logprobs["text_offset"] == list(range(14))
    for token, value, top in zip(*list(logprobs.values())[:3], strict=True):
        assert top[token] == value == -0.25 and len(top) == 2


def test_no_alternatives_are_the_chosen_one(complete):
    logprobs = complete(logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{token: -0.25} for token in logprobs["tokens"]]


@pytest.mark.parametrize("prompt", ["Säy: ", [83, 195, 164, 121], "", "🙂"])
def test_an_echo_begins_with_the_prompt(complete, chunks, prompt):
    """Exactly, whole and streamed; scored, its first token has no log-probability."""
    text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
    assert complete(prompt=prompt, echo=True).json()["choices"][0]["text"] == text + "Hello, world!"
    streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks(prompt=prompt, echo=True))
    assert streamed == text + "Hello, world!"
    scored = complete(prompt=prompt, echo=True, logprobs=1).json()["choices"][0]["logprobs"]
    assert scored["token_logprobs"][0] is None and scored["top_logprobs"][0] is None
    assert all(value == -0.25 for value in scored["token_logprobs"][1:])
    sizes = {len(value) for value in scored.values()}
    assert len(sizes) == 1 and scored["text_offset"][-2:] == [len(text) + 12, len(text) + 13]


@pytest.mark.parametrize("reply", [[EOS], [TURN], [0xF0], b"a"], ids=["end", "special", "half", "text"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_scored_prompt_is_followed_by_one_entry(complete, chunks, engine, reply, streamed):
    """Whatever is generated: who asks for one token slices the prompt's scores off before the last entry."""
    engine.reply = reply
    asked = {"prompt": [[1, 72, TURN, 105], [2, 3]], "max_tokens": 1, "logprobs": 1, "echo": True}
    body = complete(**asked).json()
    told = [choice["logprobs"] for choice in body["choices"]]
    if streamed:
        parts = [chunk["choices"][0] for chunk in chunks(**asked)]
        for index in range(2):
            lists = [
                part["logprobs"]["tokens"] for part in parts if part["logprobs"] and part["index"] == index
            ]
            assert [token for tokens in lists for token in tokens] == told[index]["tokens"]
    assert [len(each["token_logprobs"]) for each in told] == [5, 3]
    assert all(value == -0.25 for each in told for value in each["token_logprobs"][1:])
    assert told[0]["tokens"][:4] == ["\x01", "H", "<|258|>", "i"]
    assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_of_several_choices_is_scored_once(complete, chunks, engine, streamed):
    """By the first of them, for all."""
    asked = {"prompt": [[65, 66], [67]], "n": 3, "max_tokens": 1, "echo": True, "logprobs": 0}
    if streamed:
        parts = [chunk["choices"][0] for chunk in chunks(**asked)]
        told = [[p["logprobs"] for p in parts if p["logprobs"] and p["index"] == index] for index in range(6)]
        tokens = [[token for each in lists for token in each["tokens"]] for lists in told]
    else:
        tokens = [choice["logprobs"]["tokens"] for choice in complete(**asked).json()["choices"]]
    assert tokens == [["A", "B", "H"]] * 3 + [["C", "H"]] * 3
    scored = [request.params.prompt_logprobs for request in engine.requests]
    assert scored == [0, None, None, 0, None, None]


def test_tokens_of_the_stop_string_are_listed_behind_the_text(complete):
    """Where the text ends: they were generated, and are counted."""
    body = complete(stop="wor", logprobs=0).json()
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello, ", "stop")
    assert choice["logprobs"]["tokens"] == list("Hello, wor")
    assert choice["logprobs"]["text_offset"] == [*range(8), 7, 7]
    assert body["usage"]["completion_tokens"] == 10


def test_nothing_but_the_prompt(complete, chunks, engine):
    """`max_tokens: 0`: no completion, and none is counted."""
    body = complete(max_tokens=0, echo=True, logprobs=1).json()
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Say", "length")
    assert len(choice["logprobs"]["tokens"]) == 4 and body["usage"]["completion_tokens"] == 0
    assert complete(max_tokens=0).json()["choices"][0]["text"] == ""
    streamed = chunks(max_tokens=0, echo=True)
    assert [chunk["choices"][0]["text"] for chunk in streamed] == ["Say", ""]
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"


def test_the_best_of_several(complete, engine):
    """The likeliest by their mean log-probability; all that was generated is counted."""
    engine.reply = lambda request: [b"ab", b"cd", b"ef"][request.choice]
    said = []
    for n in (1, 2):
        body = complete(best_of=3, n=n).json()
        said.append([choice["text"] for choice in body["choices"]])
        assert body["usage"]["completion_tokens"] == 9
        assert all(choice["logprobs"] is None for choice in body["choices"])
    assert said == [["ab"], ["ab", "cd"]]
    assert [request.params.logprobs for request in engine.requests[:3]] == [0, 0, 0]


def test_structured_output_works_here_too(complete, engine):
    complete(guided_regex="a+")
    assert engine.requests[0].params.grammar is not None


FAULTS = [
    ({"model": ...}, "you must provide a model parameter", None),
    ({"prompt": []}, "Invalid 'prompt': empty array", "prompt"),
    ({"prompt": 5}, "Invalid type for 'prompt': expected one of a string or array", "prompt"),
    ({"prompt": ["a", 5]}, "Invalid type for 'prompt[1]': expected a string", "prompt[1]"),
    ({"prompt": [5, "a"]}, "Invalid type for 'prompt[1]': expected an integer", "prompt[1]"),
    ({"prompt": [[5], "a"]}, "Invalid type for 'prompt[1]': expected an array of integers", "prompt[1]"),
    ({"prompt": [[]]}, "Invalid 'prompt[0]': empty array", "prompt[0]"),
    ({"prompt": [259]}, "Invalid 'prompt': no token has the id 259. Expected an id from 0 to 258.", "prompt"),
    ({"prompt": [-1]}, "no token has the id -1", "prompt"),
    ({"prompt": ["a"] * 129}, "array too long", "prompt"),
    ({"max_tokens": -1}, "integer below minimum value. Expected a value >= 0", "max_tokens"),
    ({"logprobs": 21}, "integer above maximum value", "logprobs"),
    ({"logprobs": True}, "expected an integer, but got a boolean", "logprobs"),
    ({"suffix": "x"}, "Unsupported parameter: 'suffix' is not supported", "suffix"),
    ({"best_of": 2, "n": 3}, "Invalid 'best_of': expected at least 'n', 3, but got 2.", "best_of"),
    ({"best_of": 2, "stream": True}, "'best_of' cannot be used with 'stream'.", "best_of"),
    ({"echo": 1}, "expected a boolean, but got an integer", "echo"),
    ({"prompt": "x" * 5000}, "(5001 in the prompt, 40 in the completion)", "prompt"),
    ({"prompt": "x" * 4000, "max_tokens": 200}, "4001 in the prompt, 200 in the completion", "prompt"),
]


@pytest.mark.parametrize(("changes", "said", "param"), FAULTS)
def test_faults_are_answered_by_name(complete, changes, said, param):
    reply = complete(**changes)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert said in error["message"] and error["param"] == param


def test_a_deterministic_server_says_that_it_scores_no_prompts(complete, engine):
    engine.info = type(engine.info)(
        context=4096, vocabulary=259, slots=4, fingerprint="0123456789", scores=False
    )
    error = complete(echo=True, logprobs=1).json()["error"]
    assert error["param"] == "echo" and "deterministic" in error["message"]
    assert complete(echo=True).status_code == complete(logprobs=1).status_code == 200


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=12), st.text("Helo, wrd!", max_size=3), st.booleans(), st.integers(0, 3))
def test_the_whole_is_the_stream_joined(complete, chunks, prompt, stop, echo, wanted):
    """Text, entries and reason, with and without stops and echoes."""
    asked = {"prompt": prompt, "echo": echo, "logprobs": wanted, **({"stop": stop} if stop else {})}
    body = complete(**asked).json()
    [whole], usage = body["choices"], body["usage"]
    parts = [chunk["choices"][0] for chunk in chunks(**asked)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    joined = functools.reduce(
        lambda one, other: {key: one[key] + other[key] for key in one},
        [part["logprobs"] for part in parts if part["logprobs"]],
        {key: [] for key in whole["logprobs"]},
    )
    assert len(joined["tokens"]) == usage["completion_tokens"] + echo * usage["prompt_tokens"]
    assert joined == whole["logprobs"] and parts[-1]["finish_reason"] == whole["finish_reason"]


def test_the_official_client(client, server):
    """Strict about every type, whole and streamed; its types do not know the nulls of a scored echo, nor
    those of a stream."""
    reply = client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=5, echo=True)
    assert [choice.text for choice in reply.choices] == ["aHello", "bHello"]
    scored = client.completions.create(model=MODEL, prompt="a", max_tokens=5, logprobs=1)
    assert scored.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as loose:
        streamed = loose.completions.create(model=MODEL, prompt="a", max_tokens=5, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == "Hello"
