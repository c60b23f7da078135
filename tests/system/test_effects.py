"""Every parameter of a chat completion changes what it should, whole and streamed, alone and in company.

The laws are stated on the logits that transformers computes for the same weights. The server is
deterministic, so that "the same" is to the bit; that a parameter reaches the engine does not depend on it.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from distaff.server.protocol.openai.parameters import CHAT

from .asking import MARK, Answer, Asker, Body, make_folder
from .conftest import running

Law = Callable[[Asker, Callable], None]
LAWS: dict[str, Law] = {}
FLAGS = "--deterministic --slots 8 --context 1024 --log-level warning".split()
"""A line for each call would fill the pipe that nobody reads."""
TOLERANCE = 1e-3
END = 2
CHARACTERS = "abcdefghijklmnopqrstuvwxyz "
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}},
    "required": ["a"],
    "additionalProperties": False,
}
AT_ONCE = {"separate_reasoning": False}
"""A grammar begins with the reply: a random model would as soon reason first, and without end."""
CALL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def law_of(*names: str) -> Callable[[Law], Law]:
    """The function says what these parameters do."""

    def known(law: Law) -> Law:
        LAWS.update(dict.fromkeys(names, law))
        return law

    return known


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder: Path = make_folder(tmp_path_factory.mktemp("effects"))
    with running(str(folder), *FLAGS) as server:
        server.wait_ready()
        asker = Asker(server.url, folder)
        yield asker
        asker.close()


def test_every_honoured_parameter_has_a_law() -> None:
    """One that comes to be honoured is to be given one."""
    assert LAWS.keys() == CHAT.honoured.keys()


def base(draw: Callable, **more: object) -> Body:
    """A request that goes on to its limit and tells its tokens; greedy unless `more` says otherwise."""
    content = draw(st.text(CHARACTERS, min_size=1, max_size=20))
    body = {"messages": [{"role": "user", "content": content}], "seed": draw(st.integers(0, 2**40))}
    return body | {"temperature": 0, "max_tokens": 8, "logprobs": True, "ignore_eos": True} | more


def is_greedy(answer: Answer, logits: np.ndarray) -> bool:
    """Each token is the best of these logits."""
    chosen = logits[np.arange(len(answer.ids)), answer.ids]
    return len(answer.ids) == len(logits) and bool(np.all(chosen >= logits.max(-1) - TOLERANCE))


def begins(answer: Answer, whole: list[int], count: int) -> bool:
    """It is the first so many of these tokens."""
    return answer.ids == whole[:count] and answer.usage["completion_tokens"] == count


def letters(asker: Asker) -> list[int]:
    """Tokens that are text by themselves."""
    return [asker.text.encode(letter)[0] for letter in CHARACTERS]


@law_of("messages", "model", "stream")
def conversation(asker, draw):
    """The likeliest continuation of just these messages, by any of the model's names."""
    body = base(draw)
    answer = asker.ask(body)
    assert is_greedy(answer, asker.logits(body, answer.ids))
    assert answer.usage["prompt_tokens"] == len(asker.prompt(body))
    assert asker.refused(body | {"model": "nobody"}) == "model_not_found"
    body["messages"] += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    longer = asker.ask(body)
    assert is_greedy(longer, asker.logits(body, longer.ids))


@law_of("temperature")
def temperature(asker, draw):
    """Nothing is drawn that is colder than e^-40 of the best; at 0 it is the best itself."""
    warmth = draw(st.sampled_from([0, 0.01, 0.3, 2]))
    body = base(draw, temperature=warmth, n=3)
    answer = asker.ask(body)
    logits = asker.logits(body, answer.ids)
    assert np.all(logits.max(-1) - logits[np.arange(len(answer.ids)), answer.ids] <= 40 * warmth + TOLERANCE)
    assert len({choice["message"]["content"] for choice in answer.choices}) == 1 or warmth > 0


@law_of("top_p", "top_k", "min_p")
def truncation(asker, draw):
    """What is drawn lies within the nucleus, the rank, the share of the best; without a limit it need not."""
    name, value = draw(
        st.tuples(st.just("top_k"), st.integers(1, 6))
        | st.tuples(st.sampled_from(["top_p", "min_p"]), st.floats(0.01, 0.9))
    )
    body = base(draw, temperature=2)
    answer = asker.ask(body | {name: value})
    scaled = asker.logits(body, answer.ids) / 2
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    chosen = weights[np.arange(len(answer.ids)), answer.ids][:, None]
    above = np.where(weights > chosen * (1 + TOLERANCE), weights, 0)
    held = {
        "top_k": np.all((above > 0).sum(-1) < value),
        "top_p": np.all(above.sum(-1) < (value + TOLERANCE) * weights.sum(-1)),
        "min_p": np.all(chosen >= value * (1 - TOLERANCE)),
    }
    assert held[name]
    neutral = {"top_p": 1, "top_k": -1, "min_p": 0}
    assert asker.ask(body | neutral).ids == asker.ask(body).ids


@law_of("seed")
def seed(asker, draw):
    """The same seed repeats itself, others do not all say the same."""
    body = base(draw, temperature=2)
    assert asker.ask(body).ids == asker.ask(body).ids
    assert len({tuple(asker.ask(body | {"seed": n}).ids) for n in range(4)}) > 1


@law_of("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids")
def adjustments(asker, draw):
    """Greedy is the best of the logits adjusted by their definition, by some of them or all together."""
    some = draw(st.lists(st.integers(0, asker.size - 1), min_size=2, max_size=6, unique=True))
    given_ = {
        "frequency_penalty": draw(st.floats(-2, 2)),
        "presence_penalty": draw(st.floats(-2, 2)),
        "repetition_penalty": draw(st.floats(0.5, 3)),
        "logit_bias": {str(id): draw(st.floats(-100, 100)) for id in some},
        "allowed_token_ids": draw(st.permutations(letters(asker)))[:5] + some,
    }
    kept = draw(st.sets(st.sampled_from(sorted(given_)), min_size=1))
    given_ = {name: value for name, value in given_.items() if name in kept}
    body = base(draw, **given_)
    answer = asker.ask(body)
    assert is_greedy(answer, adjusted(asker, body, answer.ids))


def adjusted(asker: Asker, body: Body, ids: list[int]) -> np.ndarray:
    """The definition."""
    logits = asker.logits(body, ids)
    counts = np.tri(len(ids), k=-1) @ np.eye(asker.size)[ids]
    repeated = counts > 0
    repeated[:, asker.prompt(body)] = True
    factor = body.get("repetition_penalty", 1)
    logits = np.where(repeated, np.where(logits > 0, logits / factor, logits * factor), logits)
    logits -= counts * body.get("frequency_penalty", 0) + (counts > 0) * body.get("presence_penalty", 0)
    for id, value in body.get("logit_bias", {}).items():
        logits[:, int(id)] += value
    others = np.setdiff1d(np.arange(asker.size), body.get("allowed_token_ids", np.arange(asker.size)))
    logits[:, others] = -np.inf
    return logits


@law_of("stop", "include_stop_str_in_output")
def stop(asker, draw):
    """The text ends before the first occurrence, or behind it."""
    body = base(draw, temperature=1, allowed_token_ids=letters(asker))
    whole = asker.ask(body).text
    at, size = draw(st.integers(0, len(whole) - 1)), draw(st.integers(1, 3))
    word = whole[at : at + size]
    cut = asker.ask(body | {"stop": draw(st.sampled_from([word, [word, "no such"]]))})
    assert (cut.text, cut.finish) == (whole[: whole.find(word)], "stop")
    kept = asker.ask(body | {"stop": word, "include_stop_str_in_output": True})
    assert (kept.text, kept.finish) == (cut.text + word, "stop")


@law_of("stop_token_ids")
def stop_token_ids(asker, draw):
    """The text ends before it; it is the last of the tokens."""
    body = base(draw, temperature=1)
    whole = asker.ask(body).ids
    token = draw(st.sampled_from(whole))
    cut = asker.ask(body | {"stop_token_ids": [token]})
    assert cut.finish == "stop" and begins(cut, whole, whole.index(token) + 1)


@law_of("min_tokens", "ignore_eos")
def ends(asker, draw):
    """Where the model would end at once, it says so many tokens first, or goes on to its limit."""
    body = base(draw, logit_bias={str(END): 100}, ignore_eos=False)
    ended = asker.ask(body)
    assert (ended.ids, ended.usage["completion_tokens"], ended.finish) == ([END], 1, "stop")
    least = draw(st.integers(1, 7))
    later = asker.ask(body | {"min_tokens": least})
    assert (later.ids[least:], later.usage["completion_tokens"], later.finish) == ([END], least + 1, "stop")
    refused = {"model": "tgi", **body, "min_tokens": draw(st.sampled_from([9, 2**31 - 1]))}
    assert asker.refused(refused) == "integer_above_max_value"
    never = asker.ask(body | {"ignore_eos": True})
    assert (never.usage["completion_tokens"], never.finish) == (8, "length")


@law_of("max_tokens", "max_completion_tokens", "max_new_tokens")
def limits(asker, draw):
    """So many tokens, by each of its names; OpenAI's newer name wins."""
    body, most = base(draw), draw(st.integers(1, 7))
    whole = asker.ask(body).ids
    del body["max_tokens"]
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        cut = asker.ask(body | {name: most})
        assert cut.finish == "length" and begins(cut, whole, most)
    assert begins(asker.ask(body | {"max_tokens": 8, "max_completion_tokens": most}), whole, most)


@law_of("n")
def choices(asker, draw):
    """So many, of which the first is what one alone would be; greedy ones are alike."""
    body, count = base(draw, temperature=2), draw(st.integers(2, 4))
    several = asker.ask(body | {"n": count})
    assert len(several.choices) == count and several.ids == asker.ask(body).ids
    assert several.usage["prompt_tokens"] == len(asker.prompt(body))
    alike = asker.ask(body | {"n": count, "temperature": 0})
    assert len({choice["message"]["content"] for choice in alike.choices}) == 1


@law_of("logprobs", "top_logprobs")
def log_probabilities(asker, draw):
    """Of the model's own distribution, before temperature; as many of the likeliest as were asked for."""
    width = draw(st.integers(0, 20))
    body = base(draw, temperature=1.5, top_logprobs=width)
    answer = asker.ask(body)
    logits = asker.logits(body, answer.ids)
    expected = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= logits.max(-1, keepdims=True)
    told = [entry["logprob"] for entry in answer.entries]
    np.testing.assert_allclose(told, expected[np.arange(len(answer.ids)), answer.ids], atol=TOLERANCE)
    tops = [[top["logprob"] for top in entry["top_logprobs"]] for entry in answer.entries]
    np.testing.assert_allclose(tops, -np.sort(-expected, -1)[:, :width], atol=TOLERANCE)
    silent = {name: value for name, value in body.items() if "logprobs" not in name}
    assert asker.ask(silent).choices[0]["logprobs"] is None


@law_of("skip_special_tokens")
def special_tokens(asker, draw):
    """They are said, and shown only where that is asked for."""
    body = base(draw, logit_bias={"1": 100})
    assert asker.ask(body).text == ""
    assert asker.ask(body | {"skip_special_tokens": False}).text == 8 * "<|im_start|>"


@law_of("cache_salt")
def cache_salt(asker, draw):
    """Who sends another salt finds nothing of ours, and hears the same."""
    body = base(draw, cache_salt=uuid.uuid4().hex)
    body["messages"][0]["content"] += " long" * 20
    first, again = asker.ask(body), asker.ask(body)
    other = asker.ask(body | {"cache_salt": uuid.uuid4().hex})
    cached = [each.usage["prompt_tokens_details"]["cached_tokens"] for each in (first, again, other)]
    assert cached[0] == cached[2] == 0 < cached[1]
    assert first.ids == again.ids == other.ids


@law_of("prompt_cache_key", "prompt_cache_retention")
def cache_hints(asker, draw):
    """The pages of the conversation are kept, and the answer is the same."""
    body = base(draw, cache_salt=uuid.uuid4().hex)
    body["messages"][0]["content"] += " long" * 20
    named = draw(st.sampled_from([{"prompt_cache_key": "k"}, {"prompt_cache_retention": "24h"}]))
    plain, kept = asker.ask(body), asker.ask(body | named)
    assert plain.ids == kept.ids
    assert asker.metric("distaff_engine_kept_pages") > 0


@law_of("priority")
def priority(asker, draw):
    """It decides who is served first (`tests/server/dispatch`), and not what is answered."""
    body = base(draw)
    assert asker.ask(body).ids == asker.ask(body | {"priority": draw(st.integers(-9, 9))}).ids


@law_of("stream_options")
def usage_in_streams(asker, draw):
    """Once at the end, or in every chunk up to then."""
    body = {"model": "tgi"} | base(draw, n=2)
    expected = asker.ask(body).usage
    assert not any("usage" in chunk for chunk in asker.stream(body))
    *before, last = asker.stream(body | {"stream_options": {"include_usage": True}})
    assert {chunk["usage"] for chunk in before} == {None} and last["choices"] == []
    assert last["usage"]["completion_tokens"] == expected["completion_tokens"] == 16
    continuous = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c["usage"]["completion_tokens"] for c in asker.stream(body | {"stream_options": continuous})]
    assert counts == sorted(counts) and counts[-1] == 16 and len(set(counts)) > 2


FORMATS = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "guided_json": SCHEMA,
    "json_schema": SCHEMA,
    "guided_regex": "[ab]{3}",
    "guided_choice": ["aaa", "bab"],
    "guided_grammar": 'start: "a" B "a"\nB: /[ab]/',
    "structured_outputs": {"regex": "[ab]{3}"},
}


@law_of(*FORMATS)
def structure(asker, draw):
    """The answer is of the form, however hot, and each of two."""
    for name, value in FORMATS.items():
        body = base(draw, temperature=2, ignore_eos=False, max_tokens=60, n=2, **AT_ONCE)
        for choice in asker.ask(body | {name: value}).choices:
            assert choice["finish_reason"] == "stop"
            text = choice["message"]["content"]
            if "json" in json.dumps([name, value]):
                assert json.loads(text)["a"] in (1, 22)
            else:
                assert re.fullmatch("[ab]{3}", text)


@law_of("tools", "tool_choice", "parallel_tool_calls")
def tools(asker, draw):
    """A forced call is one of the tool's, by its schema; one alone if so asked; none where none is to be."""
    body = base(draw, temperature=1, ignore_eos=False, max_tokens=120, tools=[CALL], **AT_ONCE)
    choice = draw(st.sampled_from(["required", {"type": "function", "function": {"name": "f"}}]))
    forced = asker.ask(body | {"tool_choice": choice, "parallel_tool_calls": False}).choices[0]
    [call] = forced["message"]["tool_calls"]
    assert call["function"]["name"] == "f" and json.loads(call["function"]["arguments"])["a"] in (1, 22)
    body["max_tokens"] = 8  # for what is not forced, and so has no end of its own
    none, without = asker.ask(body | {"tool_choice": "none"}), {k: v for k, v in body.items() if k != "tools"}
    assert none.text == asker.ask(without).text and "tool_calls" not in none.choices[0]["message"]
    assert asker.ask(body).usage["prompt_tokens"] > none.usage["prompt_tokens"]


@law_of("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
def rendering(asker, draw):
    """The prompt is another, and what is said is its likeliest continuation."""
    body = base(draw)
    body["messages"].append({"role": "assistant", "content": "well"})
    usual = asker.prompt(body)
    for options in (
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"chat_template_kwargs": {"style": "kind"}},
    ):
        changed = body | options
        answer = asker.ask(changed)
        assume(END not in answer.ids)
        assert asker.prompt(changed) != usual
        assert answer.usage["prompt_tokens"] == len(asker.prompt(changed))
        assert is_greedy(answer, asker.logits(changed, answer.ids))
    assert asker.prompt(body | {"continue_final_message": True})[-1] != END


def reasons(asker: Asker, draw: Callable) -> tuple[Body, list[int]]:
    """A request whose reply begins in reasoning and does not end it, and the letters that it may say."""
    ids, mark = letters(asker)[:-1], asker.text.encode(MARK)[0]
    options = {"allowed_token_ids": [*ids, mark], "logit_bias": {str(mark): -100}}
    return base(draw, chat_template_kwargs={"thinks": True}, max_tokens=12, **options), ids


def reasoning_of(answer: Answer) -> tuple[str, int]:
    """The reasoning, and the number of its tokens."""
    counted = answer.usage["completion_tokens_details"]["reasoning_tokens"]
    return answer.choices[0]["message"].get("reasoning", ""), counted


@law_of("include_reasoning", "separate_reasoning", "reasoning_format")
def separation(asker, draw):
    """It is apart from the answer, left out, or left in it; the tokens are the same."""
    body, _ = reasons(asker, draw)
    whole = asker.ask(
        body | draw(st.sampled_from([{"separate_reasoning": False}, {"reasoning_format": "none"}]))
    )
    assert len(whole.text) == 12 and reasoning_of(whole) == ("", 0)
    apart, hidden = asker.ask(body), asker.ask(body | {"include_reasoning": False})
    assert (apart.text, *reasoning_of(apart)) == ("", whole.text, 12)
    assert (hidden.text, *reasoning_of(hidden)) == ("", "", 12)


@law_of("max_reasoning_tokens", "thinking_token_budget")
def limited_reasoning(asker, draw):
    """It ends after so many tokens, and what follows is the likeliest continuation of it and the mark."""
    body, ids = reasons(asker, draw)
    whole = asker.ask(body | {"separate_reasoning": False})
    most, mark = draw(st.integers(1, 8)), asker.text.encode(MARK)
    cut = asker.ask(body | {draw(st.sampled_from(["max_reasoning_tokens", "thinking_token_budget"])): most})
    assert reasoning_of(cut) == (whole.text[:most], most + 1) and len(cut.text) == 11 - most
    before = [*whole.ids[:most], *mark]
    logits = asker.logits(body, [*before, *cut.ids])[len(before) :]
    logits[:, np.setdiff1d(np.arange(asker.size), ids)] = -np.inf
    assert is_greedy(cut, logits)


@law_of("reasoning_effort")
def no_reasoning(asker, draw):
    """Without it the answer is the likeliest continuation of marks with nothing between them."""
    body, ids = reasons(asker, draw)
    answer = asker.ask(body | {"reasoning_effort": "none"})
    added = asker.text.encode(f"\n\n{MARK}\n\n")
    assert reasoning_of(answer) == ("", 0) and len(answer.ids) == 12
    assert answer.usage["prompt_tokens"] == len(asker.prompt(body)) + len(added)
    logits = asker.logits(body, [*added, *answer.ids])[len(added) :]
    logits[:, np.setdiff1d(np.arange(asker.size), ids)] = -np.inf
    assert is_greedy(answer, logits)


@pytest.mark.parametrize("law", dict.fromkeys(LAWS.values()), ids=lambda law: law.__name__)
def test_parameters_do_what_they_say(asker: Asker, law: Law) -> None:
    """The law, on drawn requests; what fails is told as it was drawn, for every try asks the server."""

    @settings(max_examples=10, phases=[Phase.generate])
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        law(asker, data.draw)

    holds()
