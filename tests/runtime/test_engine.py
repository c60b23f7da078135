"""The engine on a tiny model: neighbours, chunks and preemption do not change the output."""

import dataclasses
import random
import threading
import time

import numpy as np
import pytest

from .tiny import CONFIG, ask, assert_greedy, reference_logits, tokens_of

LENGTHS = (1, 2, 3, 4, 5, 17, 31, 32, 33, 64, 95, 96, 97, 120)


def test_greedy_tokens_are_the_references_in_any_batch(bench):
    """Requests of all lengths together give the same tokens as a plain numpy forward pass."""
    requests = [ask(f"n{n}", n, max_tokens=40) for n in LENGTHS]
    for request, tokens in zip(requests, bench.run(requests), strict=True):
        assert len(tokens) == 40
        assert_greedy(request, tokens)
    bench.wait_idle()


def test_new_prompts_do_not_change_decoding_rows(bench):
    """Neither the decode rows nor a prompt in the same step change."""
    first = [ask(f"first{n}", n, prompt_seed=1, max_tokens=60) for n in (5, 40, 90)]
    for request in first:
        bench.engine.submit(request)
    later = []
    for n in (1, 70, 130):
        bench.collector.wait("first5", events=10 + n // 5)
        later.append(ask(f"later{n}", n, prompt_seed=1, max_tokens=20))
        bench.engine.submit(later[-1])
    for request in [*first, *later]:
        assert_greedy(request, bench.collector.tokens(request.id))


def test_a_prompt_in_chunks_is_a_prompt_at_once(bench, make_engine):
    """The output is the same if other requests leave the prompt only parts of each step."""
    long = ask("long", 90, max_tokens=30)
    (whole,) = bench.run([long])
    others = [ask(f"other{n}", 50 + n, max_tokens=5) for n in range(4)]
    *_, chunked = bench.run([*others, dataclasses.replace(long, id="chunked")])
    assert whole == chunked


def test_preemption_changes_nothing(cramped):
    """Requests that are preempted and computed again still give the reference's tokens."""
    requests = [ask(f"r{n}", 10 + n, max_tokens=40) for n in range(8)]
    for request, tokens in zip(requests, cramped.run(requests), strict=True):
        assert len(tokens) == 40
        assert_greedy(request, tokens)
    assert cramped.engine.stats.preemptions > 0
    cramped.wait_idle()


KINDS = [
    {},
    {"top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.02, "frequency_penalty": 0.3},
    {"top_k": 150, "top_p": 0.95, "presence_penalty": 0.2},
]


def sampled(prefix):
    """Requests with every kind of sampling and different seeds."""
    return [
        ask(f"{prefix}{n}", 9 + 3 * n, max_tokens=40, temperature=0.8, **KINDS[n % 5], seed=n - 2**40)
        for n in range(8)
    ]


def test_a_seed_gives_the_same_alone_in_a_batch_and_preempted(bench, cramped):
    """A draw depends only on seed, choice, position and the request's own logits."""
    alone = [bench.run([request])[0] for request in sampled("alone")]
    together = bench.run(sampled("together"))
    preempted = cramped.run(sampled("preempted"))
    assert alone == together == preempted and cramped.engine.stats.preemptions > 0


def test_choices_of_one_seed_differ_and_repeat(bench):
    """Choices are different continuations, and the same ones in a second run."""
    settings = {"max_tokens": 20, "temperature": 0.8, "seed": 11}
    first, again = (
        bench.run([ask(f"{turn}{n}", 6, choice=n, **settings) for n in range(4)]) for turn in "ab"
    )
    assert len({tuple(tokens) for tokens in first}) == 4 and first == again


def test_a_request_without_a_seed_gets_one_of_its_own(bench):
    """Two equal requests without a seed differ; only the best ids are used, because one id is poison."""
    settings = {"max_tokens": 20, "temperature": 1.5, "top_k": 20}
    one, other = bench.run([ask(name, 6, **settings) for name in "ab"])
    assert one != other


@pytest.fixture
def plain(bench):
    """Thirty greedy tokens after one prompt, and the place of an id that first occurs in the middle."""
    (tokens,) = bench.run([ask("plain", 12, max_tokens=30)])
    place = next(i for i, token in enumerate(tokens) if i >= 5 and token not in tokens[:i])
    return tokens, place


def test_an_end_token_ends_and_is_no_token(bench, plain):
    """`finish="stop"` is in an event without a token, after the tokens before the first stop id, with that
    id and its log-probability."""
    tokens, place = plain
    bench.engine.submit(ask("on", 12, max_tokens=30, logprobs=2))
    stops = (tokens[place], tokens[place + 1])
    bench.engine.submit(ask("stopped", 12, max_tokens=30, stop_ids=stops, logprobs=2))
    *received, last = bench.collector.wait("stopped")
    assert tokens_of(received) == tokens[:place] and (last.token, last.finish) == (None, "stop")
    expected = bench.collector.wait("on")[place]
    assert last.end == expected.token and last.logprobs.top[0][0] == last.end
    assert last.logprobs.chosen == pytest.approx(expected.logprobs.chosen, abs=TOLERANCE)
    assert all(event.end is None for event in received)
    assert not any(event.finish for event in received)


def test_end_tokens_can_be_ignored(bench, plain):
    """With ignore_eos an end token is an ordinary token."""
    tokens, place = plain
    stops = (tokens[place],)
    assert bench.run([ask("on", 12, max_tokens=30, stop_ids=stops, ignore_eos=True)]) == [tokens]


def test_an_end_token_as_the_last_allowed_one_stops(bench, plain):
    """If both limits coincide, the reason is the end token."""
    tokens, place = plain
    bench.engine.submit(ask("both", 12, max_tokens=place + 1, stop_ids=(tokens[place],)))
    assert bench.collector.wait("both")[-1].finish == "stop"


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_is_exact(bench, max_tokens):
    """The last allowed token has `finish="length"`."""
    bench.engine.submit(ask("short", 8, max_tokens=max_tokens))
    events = bench.collector.wait("short")
    assert len(tokens_of(events)) == len(events) == max_tokens
    assert [event.finish for event in events] == [None] * (max_tokens - 1) + ["length"]


@pytest.mark.parametrize("length", [1, 100, CONFIG.context - 1])
def test_without_max_tokens_the_context_is_filled(bench, length):
    """A sequence grows to the context's last position, always with the reference's tokens."""
    request = ask("full", length)
    (tokens,) = bench.run([request])
    assert length + len(tokens) == CONFIG.context
    assert_greedy(request, tokens)


def test_the_first_event_reports_how_long_a_request_waited(bench):
    """A request without a slot waits for another's end; only its first event reports the time."""
    for number in range(bench.engine.slots):
        bench.engine.submit(ask(f"first {number}", 8, max_tokens=20))
    began = time.monotonic()
    bench.engine.submit(ask("late", 8, max_tokens=3))
    first, *others = bench.collector.wait("late")
    taken = time.monotonic() - began
    assert 0 < bench.collector.wait("first 0")[0].waited < first.waited < taken
    assert [event.waited for event in others] == [None, None]


def test_the_time_of_all_steps_is_charged_to_requests(bench):
    """Those of several prompts and lengths, all of which end at their limit."""
    bench.wait_idle()
    before = bench.engine.stats
    for number in range(20):
        bench.engine.submit(ask(f"paid {number}", 5 + 7 * number, max_tokens=1 + number))
    last = [bench.collector.wait(f"paid {number}")[-1] for number in range(20)]
    bench.wait_idle()
    after = bench.engine.stats
    for name in ("device_seconds", "page_seconds"):
        total = getattr(after, name) - getattr(before, name)
        assert total > 0 and sum(getattr(event, name) for event in last) == pytest.approx(total)


def test_logprobs_are_the_models_own(bench):
    """Log-probabilities are the reference's, independent of temperature and penalties."""
    odd = {"temperature": 1.7, "frequency_penalty": 1.0, "top_k": 40}
    request = ask("scored", 20, max_tokens=25, logprobs=5, **odd)
    bench.engine.submit(ask("beside", 9, max_tokens=40))
    bench.engine.submit(request)
    events = bench.collector.wait("scored")
    tokens = tokens_of(events)
    logits = reference_logits([*request.prompt, *tokens])[len(request.prompt) - 1 : -1]
    expected = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for row, event in zip(expected, events, strict=True):
        ids = [i for i, _ in event.logprobs.top]
        np.testing.assert_allclose(event.logprobs.chosen, row[event.token], atol=TOLERANCE)
        np.testing.assert_allclose([value for _, value in event.logprobs.top], row[ids], atol=TOLERANCE)
        np.testing.assert_allclose(row[ids], np.sort(row)[:-6:-1], atol=TOLERANCE)
    assert all(event.logprobs is None for event in bench.collector.wait("beside"))


TOLERANCE = 2e-4


def test_penalties_count_what_was_generated(bench):
    """They count generated tokens, not the prompt's, nor those of the slot's previous sequence."""
    settings = {"frequency_penalty": 1.5, "presence_penalty": -0.5, "max_tokens": 60}
    for turn in range(3):
        requests = [ask(f"{turn}.{n}", 20, prompt_seed=n, **settings) for n in range(4)]
        for request, tokens in zip(requests, bench.run(requests), strict=True):
            assert_greedy(request, tokens)


def test_penalties_survive_preemption(cramped):
    """Counts are rebuilt when a sequence is computed again."""
    settings = {"frequency_penalty": 0.8, "presence_penalty": 0.4, "max_tokens": 45}
    requests = [ask(f"r{n}", 10 + n, **settings) for n in range(8)]
    for request, tokens in zip(requests, cramped.run(requests), strict=True):
        assert_greedy(request, tokens)
    assert cramped.engine.stats.preemptions > 0


def test_sixty_four_streams_on_few_pages(cramped):
    """A third is aborted at random times; every stream is the reference's up to its end, and all pages are
    released."""
    generator = random.Random(3)
    requests = [
        ask(f"s{n}", generator.randint(1, 60), prompt_seed=n, max_tokens=generator.randint(1, 60))
        for n in range(64)
    ]
    aborted = {r.id: generator.uniform(0, 0.6) for r in generator.sample(requests, 21)}
    timers = [threading.Timer(delay, cramped.engine.abort, [name]) for name, delay in aborted.items()]
    for task in [*timers, *(threading.Thread(target=cramped.engine.submit, args=[r]) for r in requests)]:
        task.start()
    for request in requests:
        if request.id not in aborted:
            tokens = cramped.collector.tokens(request.id)
            assert len(tokens) == request.params.max_tokens
            assert_greedy(request, tokens)
    for timer in timers:
        timer.join()
    cramped.wait_idle()
    for name in aborted:
        request = next(r for r in requests if r.id == name)
        if tokens := tokens_of(cramped.collector.events[name]):
            assert_greedy(request, tokens)
    assert cramped.engine.stats.preemptions > 0


class Unsearchable(tuple[int, ...]):
    """Ids that must not be searched for each token."""

    def __contains__(self, key: object) -> bool:
        raise AssertionError("a linear search")


def test_many_stop_ids_cost_a_token_nothing(bench):
    """There is no linear search, even with the whole vocabulary; each of them ends the sequence."""
    ends = Unsearchable(range(CONFIG.vocabulary))
    bench.engine.submit(ask("ended", 9, max_tokens=20, stop_ids=ends))
    bench.engine.submit(ask("free", 9, max_tokens=20, stop_ids=ends, ignore_eos=True))
    (event,) = bench.collector.wait("ended")
    assert (event.finish, event.token) == ("stop", None) and event.end in range(CONFIG.vocabulary)
    assert len(bench.collector.tokens("free")) == 20
