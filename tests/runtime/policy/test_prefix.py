"""The prefix cache in a running engine: which pages are found, and that nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.model.config import RopeScaling
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.policy.host_pages import HostPages
from distaff.runtime.policy.page_file import PageFile
from distaff.runtime.policy.pages import PagePool
from distaff.runtime.policy.prefix import PrefixCache
from distaff.runtime.policy.sequence import Sequence
from distaff.runtime.request import CacheMiss, Request, SamplingParams, TokenEvent

from ..conftest import Bench, complete
from ..tiny import CONFIG, POISON, EventCollector, ask, assert_greedy, random_prompt

PAGE = 4
SCORED = SamplingParams(max_tokens=2, prompt_logprobs=0)


def continued(name: str, *parts: tuple[int, ...], **fields) -> Request:
    """A greedy request with a prompt of these parts, in order."""
    return replace(ask(name, 1, max_tokens=6), prompt=sum(parts, ()), **fields)


def cached(bench: Bench, request: Request) -> int:
    """The number of cached tokens that a request found."""
    bench.run([request])
    first, *rest = bench.collector.events[request.id]
    assert not any(event.cached_tokens for event in rest)
    return first.cached_tokens


def test_whole_pages_are_found_and_the_last_token_is_computed(bench):
    """A repeated prompt computes its last page again, also if it consists of whole pages."""
    head = random_prompt(42, seed=1)
    assert cached(bench, continued("first", head)) == 0
    assert cached(bench, continued("again", head)) == 40
    assert cached(bench, continued("whole", head[:40])) == 36
    assert cached(bench, continued("longer", head, (1, 2, 3))) == 40
    assert cached(bench, continued("other", (5,), head)) == 0


def test_an_answer_is_found_by_the_next_turn(bench):
    """A turn that repeats prompt and answer finds both, except the last token and a partial page."""
    request = continued("first", random_prompt(10, seed=2))
    (answer,) = bench.run([request])
    turn = continued("second", request.prompt, tuple(answer), (7, 8, 9))
    assert cached(bench, turn) == (10 + len(answer) - 1) // PAGE * PAGE


def first_event(bench: Bench, request: Request) -> TokenEvent:
    bench.run([request])
    first, *rest = bench.collector.events[request.id]
    assert not any(event.written_tokens or event.miss for event in rest)
    return first


def test_why_a_prompt_was_not_found(bench):
    """The first token that differs, or the first page that nothing has followed; and what was written."""
    head = random_prompt(42, seed=11)
    first = first_event(bench, continued("first", head))
    assert first.miss == CacheMiss(at=0, reason="new") and first.written_tokens == 40
    again = first_event(bench, continued("again", head))
    assert again.miss is None and (again.cached_tokens, again.written_tokens) == (40, 0)
    other = first_event(bench, continued("other", head[:30], (1,), head[31:]))
    assert other.miss == CacheMiss(at=28, reason="changed")
    assert (other.cached_tokens, other.written_tokens) == (28, 12)
    longer = first_event(bench, continued("longer", head[:40], (1, 2, 3, 4, 5)))
    assert longer.miss is not None and longer.miss.at >= 40
    scored = first_event(bench, replace(continued("scored", head), params=SCORED))
    assert scored.miss == CacheMiss(at=0, reason="scored")


def test_a_conversation_keeps_its_pages_among_strangers(make_engine):
    """Up to half of the pool, until its time has passed; an evicted page is told of."""
    collector = EventCollector()
    engine = make_engine(collector.receive, kv_pages=24)
    engine.start()
    bench, head = Bench(engine, collector), random_prompt(40, seed=12)

    def strangers(name: str) -> None:
        for n in range(6):  # one after another, because what runs takes every page that it needs
            bench.run([continued(f"{name}{n}", random_prompt(36, seed=100 + n))])

    for name, seconds, reason in (("plain", 0.0, "evicted"), ("kept", 600.0, None)):
        cached(bench, continued(f"{name} first", head, keep_seconds=seconds))
        assert (engine.stats.kept_pages > 0) == (seconds > 0)
        strangers(name)
        event = first_event(bench, continued(f"{name} again", head))
        assert (event.miss and event.miss.reason) == reason
        assert (event.cached_tokens > 0) == (reason is None)
    assert engine.stats.kept_pages <= 12
    bench.wait_idle()


def test_salts_separate_caches(bench):
    """A request with another salt finds nothing; one with the same salt does."""
    head = random_prompt(30, seed=3)
    assert cached(bench, continued("plain", head)) == 0
    assert cached(bench, continued("mine", head, cache_salt="mine")) == 0
    assert cached(bench, continued("yours", head, cache_salt="yours")) == 0
    assert cached(bench, continued("mine again", head, cache_salt="mine")) == 28


def test_a_disabled_cache_finds_nothing(make_engine, parameters):
    """It is disabled by the setting, or if keys depend on the length of a prompt."""
    collector = EventCollector()
    engine = make_engine(collector.receive, prefix_cache=False)
    engine.start()
    head = random_prompt(30, seed=4)
    bench = Bench(engine, collector)
    assert [cached(bench, continued(name, head)) for name in ("one", "two")] == [0, 0]
    scaling = RopeScaling(kind="dynamic", factor=2.0, original_context=80)
    follows = Engine(replace(CONFIG, rope=scaling), parameters)
    assert not follows._loop.scheduler.prefix._enabled


def test_long_prompts_share_pages_among_themselves(parameters):
    """With longrope a key depends on whether its prompt is longer than the trained context, so pages are
    shared on each side of it, and every reply is the one that an engine without a cache gives."""
    ones = (1.0,) * (CONFIG.head_size // 2)
    factors = dict(short_factors=ones, long_factors=tuple(2.0 * one for one in ones))
    scaling = RopeScaling(kind="longrope", factor=4.0, original_context=32, **factors)
    collector = EventCollector()
    config, wanted = replace(CONFIG, rope=scaling), EngineSettings(speculation=False)
    engine = Engine(config, parameters, wanted, collector.receive)
    plain = Engine(config, parameters, replace(wanted, prefix_cache=False), collector.receive)
    engine.warm_up()
    complete(engine._loop.runner)
    plain._loop.runner = engine._loop.runner
    head = random_prompt(60, seed=9)
    lengths = {"short": 30, "short again": 30, "long": 40, "long again": 60}
    found, replies = {}, {}
    for each, kind in ((engine, "shared"), (plain, "alone")):
        each.start()
        for name, length in lengths.items():
            request = replace(ask(f"{kind} {name}", 1, max_tokens=12), prompt=head[:length])
            (replies[kind, name],) = Bench(each, collector).run([request])
            found[kind, name] = collector.events[request.id][0].cached_tokens
        each.stop()
    size = engine.page_size
    assert [found["shared", name] // size for name in lengths] == [0, 29 // size, 0, 40 // size]
    assert [replies["shared", name] for name in lengths] == [replies["alone", name] for name in lengths]


def test_pages_are_found_while_they_are_computed(bench):
    """In a burst with one system prompt, the first request computes it and the others read it."""
    head = random_prompt(60, seed=5)
    requests = [continued(f"r{n}", head, (n + 1,)) for n in range(6)]
    for request, tokens in zip(requests, bench.run(requests), strict=True):
        assert_greedy(request, tokens)
    found = [bench.collector.events[request.id][0].cached_tokens for request in requests]
    assert found == [0] + [60] * 5


def test_a_broken_page_breaks_all_that_share_it(bench):
    """A number that is not finite in one sequence fails all that reuse its page, and no others; the page is
    valid again when it is overwritten."""
    head = random_prompt(20, seed=6)
    poisoned = (*head, POISON, *random_prompt(10, seed=7))
    for name, prompt in (("first", poisoned), ("second", (*poisoned, 3)), ("third", (*poisoned, 4, 5))):
        bench.engine.submit(continued(name, prompt))
        assert bench.collector.wait(name)[-1].error == "the model's output is not finite"
    sound = continued("sound", head, (9,) * 30)
    (tokens,) = bench.run([sound])
    assert_greedy(sound, tokens)
    crowd = [continued(f"c{n}", random_prompt(100, seed=n + 20)) for n in range(16)]
    for request, tokens in zip(crowd, bench.run(crowd), strict=True):
        assert_greedy(request, tokens)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
@given(seed=st.integers(0, 3), cuts=st.lists(st.integers(1, 60), min_size=2, max_size=8))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_found_or_computed_the_answer_is_the_same(cramped, penalty, seed, cuts):
    """Prefixes of one text in any order, with few pages, also with penalties, which count tokens."""
    text = random_prompt(70, seed=seed + 40)
    names = [f"{penalty} {seed} {n} {len(cramped.collector.events)}" for n in range(len(cuts))]
    requests = [
        replace(ask(name, 1, max_tokens=20, frequency_penalty=penalty), prompt=text[:cut])
        for name, cut in zip(names, cuts, strict=True)
    ]
    for request, tokens in zip(requests, cramped.run(requests), strict=True):
        assert_greedy(request, tokens)
    cramped.wait_idle()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 3)), max_size=60))
def test_every_miss_has_a_reason(story):
    """In pools so small that pages, and what is remembered of them, come and go."""
    pool = PagePool(4)
    prefix = PrefixCache(pool, 2)
    for number, (head, rest, pages) in enumerate(story):
        tokens = [head, head, *[rest] * 2 * pages][: 2 * pages + 1]
        request = Request(id=str(number), prompt=tuple(tokens))
        sequence = Sequence(request, 0, 100, number, tokens=tokens)
        prefix.reuse_pages(sequence)
        missing = (len(tokens) - 1) // 2 - len(sequence.pages)
        assert (sequence.miss is None) == (missing == 0)
        if sequence.miss is not None:
            assert sequence.miss.at == 2 * len(sequence.pages)
        while len(sequence.pages) * 2 < len(tokens) and (page := pool.allocate()):
            sequence.pages.append(page)
        sequence.computed = min(len(tokens), 2 * len(sequence.pages))
        prefix.publish(sequence)
        pool.release(sequence.pages)


def test_a_page_that_is_restored_twice_before_a_step_is_copied_once(tmp_path):
    """A plan that fails on the host leaves its copies to the next one, which may use its page again."""
    with (tmp_path / "pages").open("w+b") as file:
        host, pool = HostPages(PageFile(file.fileno(), "model"), 4, 2, 1), PagePool(1)
        prefix = PrefixCache(pool, 2, host=host)
        for number in (1, 2):
            sequence = Sequence(Request(id=str(number), prompt=(number,) * 3), 0, 100, number, [number] * 3)
            prefix.reuse_pages(sequence)
            host.keep([sequence.contents[0]], [np.full((1, 1), number, np.uint8)])
            prefix.reuse_pages(again := Sequence(sequence.request, 0, 100, number, [number] * 3))
            pool.release(again.pages)
        copies = prefix.take_copies()
    assert copies is not None and [(page, copy.tolist()) for page, copy in copies.restored] == [(1, [2])]
