"""The scores of a prompt's tokens against plain numpy: whole, in chunks, in a batch, preempted."""

import threading

import numpy as np
import pytest

from distaff.runtime.device.runner import Runner
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.request import InvalidRequest

from ..tiny import CONFIG, WEIGHTS, ask, assert_greedy, reference_logits, tokens_of

TOLERANCE = 2e-4


def expected_logprobs(prompt) -> np.ndarray:
    logits = reference_logits(prompt)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def check(request, event) -> None:
    """The first event's scores are the reference's."""
    rows, scores = expected_logprobs(request.prompt), event.prompt_logprobs
    assert len(scores) == len(request.prompt) - 1
    for row, token, score in zip(rows, request.prompt[1:], scores, strict=False):
        np.testing.assert_allclose(score.chosen, row[token], atol=TOLERANCE)
        ids = [i for i, _ in score.top]
        assert len(ids) == request.params.prompt_logprobs
        np.testing.assert_allclose([value for _, value in score.top], row[ids], atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 33, 96, 97, 150])
def test_scores_are_the_references(bench, length):
    """For prompts of one step, less, and more; the generated tokens are the reference's."""
    request = ask("scored", length, prompt_logprobs=3, max_tokens=5)
    bench.engine.submit(request)
    first, *rest = bench.collector.wait("scored")
    check(request, first)
    assert all(event.prompt_logprobs is None for event in rest)
    assert_greedy(request, tokens_of([first, *rest]))


def test_scored_prompts_beside_others(bench):
    """Several at once, with prompts and decode rows without scores."""
    scored = [ask(f"s{n}", 20 + 31 * n, prompt_logprobs=n, max_tokens=9) for n in range(4)]
    others = [ask(f"o{n}", 15 + 20 * n, max_tokens=30) for n in range(4)]
    for request, tokens in zip(others, bench.run([*others, *scored])[:4], strict=True):
        assert_greedy(request, tokens)
    for request in scored:
        check(request, bench.collector.wait(request.id)[0])


def test_a_scored_prompt_does_not_use_the_cache(bench):
    """Every token is computed, even if the prompt is in the cache."""
    for turn in range(2):
        request = ask(f"again{turn}", 60, prompt_logprobs=0, max_tokens=2)
        bench.engine.submit(request)
        first = bench.collector.wait(request.id)[0]
        check(request, first)
        assert first.cached_tokens == 0


def test_scores_survive_preemption(cramped):
    """A prompt that is computed again from its beginning is reported once."""
    requests = [ask(f"p{n}", 12 + n, prompt_logprobs=1, max_tokens=40) for n in range(8)]
    cramped.run(requests)
    for request in requests:
        check(request, cramped.collector.wait(request.id)[0])
    assert cramped.engine.stats.preemptions > 0


@pytest.mark.parametrize("length", [1, 40, 130])
def test_the_pooled_prompt_is_the_mean_of_its_final_states(bench, length):
    """The head is linear, so the mean of the states gives the mean of the logits."""
    request = ask("pooled", length, pool_prompt=True, max_tokens=3)
    bench.engine.submit(request)
    first, *_ = bench.collector.wait("pooled")
    logits = np.asarray(first.pooled) @ WEIGHTS["head"]
    np.testing.assert_allclose(logits, reference_logits(request.prompt).mean(0), atol=TOLERANCE)


@pytest.mark.parametrize("settings", [{"scores": False}, {"scores": True, "deterministic": True}])
def test_an_engine_without_scores_refuses_them(parameters, settings):
    """With the name of the parameter; also a deterministic engine."""
    engine = Engine(CONFIG, parameters, EngineSettings(**settings))
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.submit(ask("none", 5, prompt_logprobs=1))


def test_scored_prompts_share_steps(bench):
    """As other prompts do: four prompts of 6 tokens are one step of 24."""
    gate = threading.Event()
    bench.engine._loop.enqueue(lambda: gate.wait(30))
    requests = [ask(f"t{n}", 6, prompt_seed=n, prompt_logprobs=1, max_tokens=1) for n in range(4)]
    before = bench.engine.stats.steps
    for request in requests:
        bench.engine.submit(request)
    gate.set()
    for request in requests:
        check(request, bench.collector.wait(request.id)[0])
    assert bench.engine.stats.steps == before + 1


def test_a_short_scored_prompt_runs_in_a_small_step(bench, monkeypatch):
    """The smallest one that holds it."""
    buckets = []
    launch = Runner.launch

    def seen(self, plan):
        in_flight = launch(self, plan)
        buckets.append(str(in_flight.bucket))
        return in_flight

    monkeypatch.setattr(Runner, "launch", seen)
    bench.engine.submit(ask("small", 6, prompt_logprobs=1, max_tokens=1))
    bench.collector.wait("small")
    assert buckets == ["mixed(16)"]
