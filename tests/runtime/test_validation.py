"""Requests that the engine refuses at once, and that it can pack all others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distaff.runtime.request import MAX_TEMPERATURE, InvalidRequest, Request, SamplingParams
from distaff.runtime.validation import check

from .packable import assert_packs

VOCABULARY, CONTEXT = 50, 40
IDS = st.integers(0, VOCABULARY - 1)


def around(low: int, high: int) -> st.SearchStrategy[int]:
    """Integers of a range, its ends more often, and integers outside."""
    ends = st.sampled_from([low - 1, low, low + 1, high - 1, high, high + 1])
    return ends | st.integers(low, high) | st.integers(-(2**70), 2**70)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Decimals of a range, its ends more often, and any others."""
    ends = st.sampled_from([low, high, 0.0, 1e-320, 5e-324])
    return ends | st.floats(low, high) | st.floats(allow_nan=True)


PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.none() | around(1, CONTEXT),
        "temperature": numbers(0, MAX_TEMPERATURE),
        "top_p": numbers(0, 1),
        "top_k": around(0, 2**31 - 1),
        "min_p": numbers(0, 1),
        "seed": st.none() | around(-(2**63), 2**64 - 1),
        "frequency_penalty": numbers(-2, 2),
        "presence_penalty": numbers(-2, 2),
        "repetition_penalty": numbers(0.01, 100),
        "logit_bias": st.lists(st.tuples(around(0, VOCABULARY - 1), numbers(-100, 100)), max_size=3).map(
            tuple
        ),
        "allowed_ids": st.none() | st.lists(around(0, VOCABULARY - 1), max_size=3).map(tuple),
        "min_tokens": around(0, CONTEXT) | around(0, 2**31 - 1),
        "logprobs": st.none() | around(0, 20),
        "prompt_logprobs": st.none() | around(0, 20),
        "stop_ids": st.lists(around(0, VOCABULARY), max_size=3).map(tuple)
        | st.just(tuple(range(VOCABULARY))),
        "ignore_eos": st.booleans(),
    },
)


@given(
    prompt=st.lists(IDS, max_size=CONTEXT).map(tuple) | st.lists(around(0, VOCABULARY - 1)).map(tuple),
    params=PARAMS,
    choice=around(0, 2**31 - 1),
    generated=st.just(())
    | st.lists(IDS, max_size=6).map(tuple)
    | st.lists(around(0, VOCABULARY - 1)).map(tuple),
)
@example(prompt=(1,), params={"max_tokens": 5, "min_tokens": 2**31 - 1}, choice=0, generated=())
@example(prompt=(1,), params={"min_tokens": 2**31 - 1, "stop_ids": (2,)}, choice=0, generated=())
@example(prompt=(1,), params={"stop_ids": (-500,)}, choice=0, generated=())
@example(prompt=(1,), params={"stop_ids": (2**70,), "min_tokens": 3}, choice=0, generated=())
@example(prompt=(1,), params={"temperature": 1e300}, choice=0, generated=())
def test_valid_requests_can_be_packed(prompt, params, choice, generated):
    """Any values: an error with the field's name, or a place in the buffer for each of them."""
    try:
        sampling = SamplingParams(**params)
        request = Request(id="r", prompt=prompt, params=sampling, choice=choice, generated=generated)
        assert_packs(request, VOCABULARY, CONTEXT)
    except InvalidRequest as refusal:
        assert refusal.param in ("prompt", "choice", "generated", *params)


@pytest.mark.parametrize(
    ("params", "param", "message"),
    [
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "min_tokens is 6; expected 0 to 5"),
        ({"min_tokens": 38}, "min_tokens", "min_tokens is 38; expected 0 to 37"),
        ({"stop_ids": (3, -500)}, "stop_ids", "token id -500 in stop_ids; expected at least 0"),
        ({"stop_ids": (3.0,)}, "stop_ids", "token id 3.0 in stop_ids; expected at least 0"),
        ({"allowed_ids": ()}, "allowed_ids", "allowed_ids is empty; expected at least one id"),
        ({"top_k": 2.5}, "top_k", "top_k is 2.5; expected an integer"),
        (
            {"allowed_ids": (3, 4), "stop_ids": (4, 3, 7), "min_tokens": 1},
            "min_tokens",
            "min_tokens is 1, though every token that may be generated ends the sequence; expected 0",
        ),
        (
            {"stop_ids": tuple(range(VOCABULARY)), "min_tokens": 2},
            "min_tokens",
            "min_tokens is 2, though every token that may be generated ends the sequence; expected 0",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(params, param, message):
    """With the field's name, the value and what was expected."""
    with pytest.raises(InvalidRequest) as refusal:
        check(Request(id="r", prompt=(1, 2, 3), params=SamplingParams(**params)), VOCABULARY, CONTEXT)
    assert (str(refusal.value), refusal.value.param) == (message, param)


@pytest.mark.parametrize(
    ("generated", "params", "message"),
    [
        ((4, 50), {}, "token id 50 in generated; expected 0 to 49"),
        ((4, 5, 6), {"max_tokens": 3}, "3 tokens are generated; expected at most 2"),
        ((4,) * 37, {}, "37 tokens are generated; expected at most 36"),
        ((4, 5, 6), {"stop_ids": (9, 5)}, "token id 5 in generated ends the sequence; expected none"),
    ],
)
def test_ended_sequences_do_not_continue(generated, params, message):
    """With the value and what was expected; the maximum number of generated tokens is exact."""
    request = Request(id="r", prompt=(1, 2, 3), params=SamplingParams(**params), generated=generated)
    with pytest.raises(InvalidRequest) as refusal:
        check(request, VOCABULARY, CONTEXT)
    assert (str(refusal.value), refusal.value.param) == (message, "generated")
    ignored = replace(request.params, ignore_eos=True)
    fitting = tuple(min(token, VOCABULARY - 1) for token in generated[:-1])
    assert check(replace(request, params=ignored, generated=fitting), VOCABULARY, CONTEXT) <= CONTEXT


def test_the_limits_are_exact():
    """The largest that fits passes; a model's own end ids can be above its vocabulary."""
    request = Request(id="r", prompt=(1, 2, 3), params=SamplingParams(min_tokens=37, stop_ids=(1000,)))
    assert check(request, VOCABULARY, CONTEXT) == CONTEXT
    only_ends = SamplingParams(allowed_ids=(3,), stop_ids=(3,))
    assert check(replace(request, params=only_ends), VOCABULARY, CONTEXT) == CONTEXT


def test_ids_are_python_integers():
    """Integers of numpy are refused; otherwise they would fail later, at the first full page."""
    with pytest.raises(InvalidRequest, match=r"token id np.int64\(2\) in the prompt; expected 0 to 49"):
        check(Request(id="r", prompt=(1, np.int64(2))), VOCABULARY, CONTEXT)
