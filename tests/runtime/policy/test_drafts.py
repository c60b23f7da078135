"""Prompt lookup: which drafts are proposed, when they pay, and that the output does not change."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.policy.drafts import MOST, NGRAM, Drafter, allocate_drafts
from distaff.runtime.request import Request

from ..conftest import Bench
from ..tiny import EventCollector, ask, assert_greedy, random_prompt, reference_logits
from .simulation import SimulatedLoop, alone

TEXT = st.lists(st.integers(0, 3), max_size=60)


@given(TEXT, st.lists(st.integers(0, 60)), st.integers(0, 20))
def test_tokens_after_the_last_occurrence_are_proposed(tokens, looks, most):
    """However the text grew: they follow the newest earlier occurrence of the last tokens."""
    drafter = Drafter()
    for length in sorted(looks):
        drafter.propose(tokens[:length], 5)
    tail = tokens[-NGRAM:]
    places = [end for end in range(NGRAM, len(tokens)) if tokens[end - NGRAM : end] == tail]
    expected = tokens[places[-1] :][: min(most, MOST)] if places else []
    assert list(drafter.propose(tokens, most)) == expected


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=40))
def test_a_chance_is_a_probability(trials):
    """It is always between 0 and 1, and rises only with accepted drafts."""
    drafter = Drafter()
    for drafted, accepted in trials:
        before, accepted = drafter.chance, min(accepted, drafted)
        drafter.learn(drafted, accepted)
        assert 0 < drafter.chance <= 1
        if accepted == drafted:
            assert drafter.chance >= before
        if accepted == 0:
            assert drafter.chance < before


COSTS = st.lists(st.floats(0.1, 10), min_size=1, max_size=6).map(sorted)
OFFERS = st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 6)), min_size=1, max_size=5)


@given(OFFERS, COSTS)
def test_the_fastest_step_is_chosen(offers, costs):
    """No other number of drafts gives more tokens per second; no row gets more drafts than it has."""
    sizes = [2**n for n in range(len(costs))]
    seconds = dict(zip(sizes, costs, strict=True))
    counts = allocate_drafts(offers, sizes, seconds.get)
    assert all(0 <= count <= most for count, (_, most) in zip(counts, offers, strict=True))

    def rate(gains: list[float]) -> float:
        size = next((size for size in sizes if size >= len(offers) + len(gains)), None)
        return 0.0 if size is None else (len(offers) + sum(gains)) / seconds[size]

    chosen = [c**n for count, (c, _) in zip(counts, offers, strict=True) for n in range(1, count + 1)]
    best = sorted((c**n for c, most in offers for n in range(1, most + 1)), reverse=True)
    fastest = max((rate(best[:n]) for n in range(len(best) + 1)), default=0.0)
    if any(counts):
        assert rate(chosen) > rate([]) and rate(chosen) >= fastest * (1 - 1e-9)
    elif rate([]):
        assert fastest <= rate([]) * 1.1 * (1 + 1e-9)


def test_there_are_no_drafts_without_known_times():
    """Before the first step the cost of drafts is unknown."""
    assert allocate_drafts([(0.9, 5)], [], lambda size: None) == [0]


def test_right_drafts_save_steps():
    """A repetitive sequence ends in fewer steps than it has tokens, with the same output."""
    prompt, iterations = [10, 12] * 3, {}
    for drafts in (False, True):
        loop = SimulatedLoop(slots=1, pages=80, page_size=2, budget=8, drafts=drafts)
        loop.submit(prompt, 60)
        iterations[drafts] = 0
        while loop.unfinished:
            loop.run_once()
            iterations[drafts] += 1
        assert loop.sequences[0].tokens == alone(prompt, 66)
        assert bool(loop.outputs.counts.drafted_tokens) == drafts
    assert iterations[True] + loop.outputs.counts.accepted_tokens >= iterations[False] > iterations[True]


@pytest.fixture
def drafting_engine(make_engine, monkeypatch) -> Callable[[], Bench]:
    """Creates engines for which steps of all sizes seem to take the same time, so drafts are free."""

    def make() -> Bench:
        collector = EventCollector()
        engine = make_engine(collector.receive, speculation=True)
        step_times = engine._loop.scheduler.step_times
        monkeypatch.setattr(step_times, "seconds", lambda kind, tokens: 1.0)
        engine.start()
        return Bench(engine, collector)

    return make


def set_drafts(monkeypatch, outputs: Iterable[tuple[Request, list[int]]]) -> None:
    """Makes drafters propose known outputs, with each seventh token wrong, because a random model does not
    repeat itself often enough."""
    texts = [[*request.prompt, *tokens] for request, tokens in outputs]

    def propose(self: Drafter, tokens: list[int], most: int) -> tuple[int, ...]:
        known = next((text for text in texts if text[: len(tokens)] == tokens), tokens)
        ahead = enumerate(known[len(tokens) : len(tokens) + max(0, min(most, 4))], len(tokens))
        return tuple(token if place % 7 else (token + 1) % 190 for place, token in ahead)

    monkeypatch.setattr(Drafter, "propose", propose)


def looping(name: str, text: int, **params) -> Request:
    """A request with a repetitive prompt."""
    return replace(ask(name, 1, **params), prompt=random_prompt(9, seed=text) * 4)


@pytest.fixture
def without(make_engine):
    """Runs requests in an engine without drafts."""

    def run(requests) -> list[list[int]]:
        collector = EventCollector()
        engine = make_engine(collector.receive)
        engine.start()
        outputs = Bench(engine, collector).run(requests)
        engine.stop()
        return outputs

    return run


def test_drafts_change_nothing(without, drafting_engine, monkeypatch):
    """Greedy or sampled, with log-probabilities or penalties, in a batch: the output is the same."""
    kinds = [
        {},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 0.3, "seed": 4, "top_p": 0.8, "logprobs": 2},
        {"frequency_penalty": 0.4},
        {"logprobs": 0},
        {"grammar": "3,60"},
        {"logit_bias": ((7, 2.0),), "min_tokens": 9, "stop_ids": (198,)},
    ]
    crowds = [
        [looping(f"{rows}.{n}", n, max_tokens=50, **kinds[n]) for n in range(rows)] for rows in (1, 3, 7)
    ]
    outputs = [without(requests) for requests in crowds]
    set_drafts(monkeypatch, zip(crowds[2], outputs[2], strict=True))
    drafting = drafting_engine()
    for requests, expected in zip(crowds, outputs, strict=True):
        received = drafting.run(requests)
        assert received == expected
        for request, tokens in zip(requests, received, strict=True):
            events = drafting.collector.events[request.id]
            assert len(tokens) == 50 and events[-1].finish == "length"
            assert all((e.logprobs is not None) == (request.params.logprobs is not None) for e in events)
            if request.params.temperature == 0:
                assert_greedy(request, tokens)
    stats = drafting.engine.stats
    assert stats.drafted_tokens > 50 and stats.accepted_tokens > 10
    drafting.wait_idle()


def test_there_are_no_drafts_beside_a_scored_prompt(without, drafting_engine, monkeypatch):
    """Not even beside its last token, which is a decode row like the others: a step that scores has one
    sample per row. The prompt has its scores, and the others have the same output."""
    crowd = [looping(f"r{n}", n, max_tokens=30, logprobs=1) for n in range(3)]
    # Of 96 tokens per step, 3 prompts of 36 leave 96 - 2 - 12 in the second: all of its tokens except one.
    crowd.append(ask("scored", 83, prompt_logprobs=1, max_tokens=8))
    outputs = without(crowd)
    set_drafts(monkeypatch, zip(crowd, outputs, strict=True))
    drafting, plans = drafting_engine(), []
    runner = drafting.engine._loop.runner
    launch = runner.launch
    monkeypatch.setattr(runner, "launch", lambda plan: (plans.append(plan), launch(plan))[1])
    gate = threading.Event()
    drafting.engine._loop.enqueue(lambda: gate.wait(30))
    for request in crowd:
        drafting.engine.submit(request)
    gate.set()
    assert [drafting.collector.tokens(request.id) for request in crowd] == outputs
    assert any(plan.scored and plan.is_decode for plan in plans)
    logits = reference_logits(crowd[-1].prompt)
    norms = np.logaddexp.reduce(logits, axis=-1)
    expected = [
        row[token] - norm for row, norm, token in zip(logits, norms, crowd[-1].prompt[1:], strict=False)
    ]
    scores = [score.chosen for score in drafting.collector.events["scored"][0].prompt_logprobs or ()]
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert drafting.engine.stats.accepted_tokens > 10
