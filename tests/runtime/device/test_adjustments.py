"""Biases, bans and repetition on a tiny model: each has exactly the effect of its definition."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.runtime.request import InvalidRequest, SamplingParams

from ..tiny import CONFIG, ask, assert_greedy

IDS = st.integers(0, CONFIG.vocabulary - 2)
ADJUSTMENTS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.floats(0.5, 2.0),
        "frequency_penalty": st.floats(-1, 2),
        "logit_bias": st.dictionaries(IDS, st.floats(-100, 100), max_size=5).map(lambda d: tuple(d.items())),
        "allowed_ids": st.sets(IDS, min_size=2).map(tuple),
        "min_tokens": st.integers(0, 12),
    },
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ADJUSTMENTS, min_size=1, max_size=6))
def test_each_adjustment_is_its_definition_alone_and_together(bench, drawn):
    """Greedy tokens are the adjusted reference's, beside rows with other adjustments or none."""
    bench.collector.events.clear()
    requests = [ask(f"a{n}", 7 + n, max_tokens=12, **params) for n, params in enumerate([*drawn, {}])]
    for request, tokens in zip(requests, bench.run(requests), strict=True):
        assert_greedy(request, tokens)


def test_adjustments_survive_preemption(cramped):
    """After a preemption, in another slot, a sequence has its own bias, bans and counts again."""
    adjust = dict(repetition_penalty=1.4, logit_bias=((5, 3.0), (9, -100.0)), max_tokens=40)
    requests = [ask(f"p{n}", 10 + n, **adjust) for n in range(8)]
    for request, tokens in zip(requests, cramped.run(requests), strict=True):
        assert_greedy(request, tokens)
    assert cramped.engine.stats.preemptions > 0


def test_a_bias_can_force_and_forbid(bench):
    """+100 decides every token, -100 excludes the best one."""
    (plain,) = bench.run([ask("plain", 9, max_tokens=8)])
    (forced,) = bench.run([ask("forced", 9, max_tokens=8, logit_bias=((17, 100.0),))])
    (banned,) = bench.run([ask("banned", 9, max_tokens=8, logit_bias=((plain[0], -100.0),))])
    assert forced == [17] * 8 and plain[0] not in banned


def test_no_end_before_min_tokens(bench):
    """An end id is not generated before min_tokens; after that it ends the sequence."""
    (plain,) = bench.run([ask("free", 12, max_tokens=30)])
    stops = tuple(set(plain[2:9]))
    request = ask("late", 12, max_tokens=30, stop_ids=stops, min_tokens=9)
    bench.engine.submit(request)
    tokens = bench.collector.tokens("late")
    assert len(tokens) >= 9 and not set(tokens) & set(stops)
    assert_greedy(dataclasses.replace(request), tokens[:9])


@pytest.mark.parametrize(
    "wrong",
    [
        {"logit_bias": ((CONFIG.vocabulary, 1.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"allowed_ids": (3, CONFIG.vocabulary)},
    ],
)
def test_ids_beyond_the_vocabulary_are_refused(bench, wrong):
    """With the name of the parameter, before anything is computed."""
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        bench.engine.submit(ask("wrong", 5, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"min_tokens": -1},
        {"logit_bias": ((1, 101.0),)},
        {"prompt_logprobs": 21},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    """Invalid parameters cannot be created."""
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        SamplingParams(**wrong)
