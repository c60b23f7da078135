"""The law of continuation: an interrupted sequence continues elsewhere with the same tokens."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count, cycle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.runtime.request import InvalidRequest, Request, TokenEvent

from .conftest import Bench
from .tiny import POISON, EventCollector, ModuloGrammar, ask, tokens_of

TOLERANCE = 2e-4
IDS = st.integers(0, POISON - 1)
NAMES = count()

PARAMS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 40), "seed": st.integers(-(2**63), 2**64 - 1)},
    optional={
        "temperature": st.sampled_from([0.4, 1.0]),
        "top_p": st.sampled_from([0.8, 1.0]),
        "top_k": st.sampled_from([0, 30]),
        "frequency_penalty": st.sampled_from([-0.5, 1.5]),
        "presence_penalty": st.sampled_from([-0.5, 1.0]),
        "repetition_penalty": st.sampled_from([0.7, 1.4]),
        "logit_bias": st.lists(st.tuples(IDS, st.sampled_from([-100.0, 3.0])), max_size=4).map(tuple),
        "stop_ids": st.lists(IDS, min_size=1, max_size=40).map(tuple),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 4),
        "prompt_logprobs": st.integers(0, 2),
        "pool_prompt": st.booleans(),
        "grammar": st.sampled_from(["1,12", "2,40", "3,9", "5,25"]),
    },
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A sequence of any kind, with a seed."""
    params = draw(PARAMS)
    params["min_tokens"] = draw(st.integers(0, params["max_tokens"]))
    length, choice = draw(st.integers(1, 60)), draw(st.integers(0, 3))
    return ask("", length, prompt_seed=draw(st.integers(0, 3)), choice=choice, **params)


CUTS = st.lists(st.integers(0, 20), min_size=1, max_size=3)
"""The number of events in each part before it is interrupted."""


def begin(bench: Bench, request: Request) -> str:
    """Submits a request under a new id."""
    name = str(next(NAMES))
    bench.engine.submit(replace(request, id=name))
    return name


def interrupt(bench: Bench, name: str, events: int) -> list[TokenEvent]:
    """The events of a request up to its abort, after at least `events` of them."""
    so_far = bench.collector.wait(name, events=events) if events else []
    bench.engine.abort(name)
    return so_far


def interrupted(benches: Sequence[Bench], request: Request, cuts: Sequence[int]) -> list[TokenEvent]:
    """The events of a request that moves from engine to engine."""
    received: list[TokenEvent] = []
    places = cycle(benches)
    for cut in cuts:
        bench = next(places)
        part = replace(request, generated=tuple(tokens_of(received)))
        received += interrupt(bench, begin(bench, part), cut)
        if len(benches) > 1:
            bench.wait_idle()  # engines share one device, so only one is busy at a time
        if received and received[-1].finish:
            return received
    bench = next(places)
    return received + bench.collector.wait(
        begin(bench, replace(request, generated=tuple(tokens_of(received))))
    )


def assert_equal(received: Sequence[TokenEvent], whole: Sequence[TokenEvent]) -> None:
    """Equal tokens and ends; log-probabilities within a tolerance; the prompt is reported once."""
    assert tokens_of(received) == tokens_of(whole)
    for event, expected in zip(received, whole, strict=True):
        assert (event.finish, event.end, event.error) == (expected.finish, expected.end, None)
        assert (event.waited is None) == (expected.waited is None)
        assert (event.prompt_logprobs is None) == (expected.prompt_logprobs is None)
        assert (event.pooled is None) == (expected.pooled is None)
        assert event.cached_tokens == 0 or event.waited is not None
        assert (event.logprobs is None) == (expected.logprobs is None)
        if event.logprobs and expected.logprobs:
            assert event.logprobs.chosen == pytest.approx(expected.logprobs.chosen, abs=TOLERANCE)
            ours, theirs = ([value for _, value in each.logprobs.top] for each in (event, expected))
            assert ours == pytest.approx(theirs, abs=TOLERANCE)


PLACES = {
    "the same engine": [{}],
    "one without a cache": [{"prefix_cache": False}],
    "another engine": [{"prefix_cache": False}, {"prefix_cache": False}],
}
"""Settings of the engines that share a sequence. Two of them share a pool, so neither can cache pages."""


@pytest.fixture(params=PLACES)
def benches(request, make_engine) -> list[Bench]:
    """The running engines of a place."""
    benches = []
    for wanted in PLACES[request.param]:
        collector = EventCollector()
        benches.append(Bench(make_engine(collector.receive, **wanted), collector))
        benches[-1].engine.start()
    return benches


@given(request=requests(), cuts=CUTS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sequence_continues_where_it_was_interrupted(benches, request, cuts):
    """After any number of tokens, any number of times: sampling, penalties, grammar, ends and limits."""
    received = interrupted(benches, request, cuts)
    assert_equal(received, benches[0].collector.wait(begin(benches[0], request)))


KINDS = [
    {"temperature": 1.0},
    {"logprobs": 2, "prompt_logprobs": 1},
    {"temperature": 0.7, "frequency_penalty": 0.6, "repetition_penalty": 1.2},
    {"temperature": 0.9, "grammar": "3,50"},
]


def test_continuations_are_preempted_like_any_other(cramped):
    """Choices of several kinds, all interrupted and continued together with few pages."""
    asked = [
        ask("", 9 + 2 * n, choice=n // 2, max_tokens=40, seed=n % 2, **KINDS[n % len(KINDS)])
        for n in range(8)
    ]
    wholes = [cramped.collector.wait(begin(cramped, request)) for request in asked]
    assert cramped.engine.stats.preemptions == 0
    parts = [interrupt(cramped, begin(cramped, request), 3 * n) for n, request in enumerate(asked)]
    names = [
        begin(cramped, replace(request, generated=tuple(tokens_of(part)), client=str(n % 2)))
        for n, (request, part) in enumerate(zip(asked, parts, strict=True))
        if not (part and part[-1].finish)
    ]
    rests = iter(names)
    for whole, part in zip(wholes, parts, strict=True):
        ended = part and part[-1].finish
        assert_equal(part if ended else part + cramped.collector.wait(next(rests)), whole)
    assert len(names) > 4 and cramped.engine.stats.preemptions > 0
    cramped.wait_idle()


def test_the_prompt_is_scored_once(bench):
    """A continuation uses the cache, although a scored prompt is computed again."""
    request = ask("", 60, max_tokens=30, prompt_logprobs=2)
    whole = bench.collector.wait(begin(bench, request))
    before = bench.engine.stats.prompt_tokens
    rest = bench.collector.wait(begin(bench, replace(request, generated=tuple(tokens_of(whole[:20])))))
    assert tokens_of(rest) == tokens_of(whole[20:])
    assert bench.engine.stats.prompt_tokens == before


def test_a_grammar_that_does_not_allow_the_generated_tokens_is_refused(bench, monkeypatch):
    """With the matcher's error; so is a sequence with a complete grammar."""
    request = ask("again", 5, max_tokens=9, grammar="2,3")
    with pytest.raises(InvalidRequest, match="after the 2 generated tokens: 6 is not allowed") as refused:
        bench.engine.submit(replace(request, generated=(4, 6)))
    assert refused.value.param == "grammar"
    with pytest.raises(InvalidRequest, match="the grammar ends with the generated tokens") as refused:
        bench.engine.submit(replace(request, generated=(4, 5, 6)))
    assert refused.value.param == "generated"
    assert ModuloGrammar.allowed("2,3", 1)[
        bench.collector.tokens(begin(bench, replace(request, generated=(4,))))[0]
    ]
