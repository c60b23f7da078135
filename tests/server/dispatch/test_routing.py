"""The laws of routing: never away from the ready, never far beyond the idlest, together what begins alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.dispatch import routing
from distaff.server.dispatch.routing import BLOCK, LEAD, Router, block_digests

REPLICAS = 3


@dataclass(frozen=True)
class Arrival:
    """A prompt, and the loads of the replicas that are ready at the time."""

    prompt: tuple[int, ...]
    loads: Mapping[int, float]


def prompt(*blocks: int, rest: int = 0) -> tuple[int, ...]:
    """One block for each number, all of its tokens that number; then some tokens that fill none."""
    return tuple(number for number in blocks for _ in range(BLOCK)) + (9,) * rest


prompts = st.builds(
    lambda blocks, rest: prompt(*blocks, rest=rest),
    st.lists(st.integers(0, 2), max_size=4),
    st.integers(0, BLOCK - 1),
)
loads = st.dictionaries(
    st.integers(0, REPLICAS - 1), st.integers(0, 12).map(lambda n: n / 8), min_size=1, max_size=REPLICAS
)
arrivals = st.lists(st.builds(Arrival, prompts, loads), min_size=1, max_size=30)


def route(router: Router, arrival: Arrival) -> int:
    digests = block_digests(arrival.prompt)
    chosen = router.choose(digests, arrival.loads)
    router.remember(chosen, digests)
    return chosen


def common_blocks(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Full blocks at the beginning that two prompts share, counted token by token."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return (min(len(one), len(other)) if same is None else same) // BLOCK


@given(arrivals)
def test_the_choice_is_ready_close_to_the_idlest_and_knows_the_most(story: list[Arrival]):
    """Against a plain model that remembers every prompt and compares token by token."""
    router, past = Router(REPLICAS), {replica: [] for replica in range(REPLICAS)}
    for arrival in story:
        chosen = route(router, arrival)
        assert chosen in arrival.loads
        within = [r for r, load in arrival.loads.items() if load <= min(arrival.loads.values()) + LEAD]
        assert chosen in within
        known = {r: max((common_blocks(arrival.prompt, p) for p in past[r]), default=0) for r in within}
        best = [r for r in within if known[r] == max(known.values())]
        assert chosen in best
        assert arrival.loads[chosen] == min(arrival.loads[r] for r in best)
        past[chosen].append(arrival.prompt)


@given(arrivals)
def test_equal_stories_end_equally(story: list[Arrival]):
    one, other = Router(REPLICAS), Router(REPLICAS)
    assert [route(one, arrival) for arrival in story] == [route(other, arrival) for arrival in story]


@given(prompts.filter(lambda p: len(p) >= BLOCK), st.permutations(range(REPLICAS)), st.integers(0, BLOCK))
def test_prompts_that_begin_alike_stay_together(begin: tuple[int, ...], order: list[int], rest: int):
    """Whatever follows, and although the others are a little idler."""
    router = Router(REPLICAS)
    busy = dict.fromkeys(order, 0.0)
    home = route(router, Arrival(begin, busy))
    whole = begin[: len(begin) // BLOCK * BLOCK]
    for number in range(2 * REPLICAS):
        assert route(router, Arrival((*whole, number, *[5] * rest), busy | {home: LEAD})) == home


@given(st.integers(1, 6), st.integers(0, BLOCK - 1))
def test_ties_go_round(replicas: int, length: int):
    """Nothing is known of prompts shorter than a block, and all are equally busy: everybody has a turn."""
    router = Router(replicas)
    busy = dict.fromkeys(range(replicas), 0.5)
    chosen = [route(router, Arrival((1,) * length, busy)) for _ in range(2 * replicas)]
    assert chosen == [*range(replicas)] * 2


def test_a_crowd_that_begins_alike_spreads_and_then_has_two_homes():
    """Nobody's lead exceeds the bound by more than the one stream that was just routed."""
    router, slots, streams = Router(2), 8, [0, 0]
    for number in range(40):
        busy = {replica: count / slots for replica, count in enumerate(streams)}
        streams[route(router, Arrival((*prompt(1, 2), number), busy))] += 1
        assert abs(streams[0] - streams[1]) <= LEAD * slots + 1
    assert sum(streams) == 40 and min(streams) > 0


def test_a_replica_that_begins_anew_knows_nothing():
    router, busy = Router(2), {0: 0.0, 1: 0.0}
    assert route(router, Arrival(prompt(1), busy)) == 0
    assert route(router, Arrival(prompt(1), busy)) == 0
    router.forget(0)
    assert route(router, Arrival(prompt(1), busy)) == 1


def test_memory_is_bounded_and_beginnings_outlive_what_follows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routing, "MOST_BLOCKS", 3)
    router, busy = Router(2), {0: 0.0, 1: 0.0}
    assert route(router, Arrival(prompt(1, 2, 3, 4, 5), busy)) == 0
    router.remember(1, block_digests(prompt(7)))
    router.remember(0, block_digests(prompt(7)))  # now replica 0 keeps 7, 1 and 1-2
    assert [len(served) for served in router._served] == [3, 1]
    assert router.choose(block_digests(prompt(1, 9)), busy) == 0
    router.remember(1, block_digests(prompt(1, 2, 3)))
    assert router.choose(block_digests(prompt(1, 2, 3)), busy) == 1


@given(prompts, prompts)
def test_digests_are_of_whole_beginnings(one: tuple[int, ...], other: tuple[int, ...]):
    """Equal as far as the prompts are, never again after the first difference."""
    pairs = zip(block_digests(one), block_digests(other), strict=False)
    equal = [a == b for a, b in pairs]
    shared = common_blocks(one, other)
    assert equal == [True] * shared + [False] * (len(equal) - shared)
    assert len(block_digests(one)) == len(one) // BLOCK


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 9))
def test_digests_of_bytes_are_of_whole_beginnings_too(one: bytes, other: bytes, block: int):
    """In blocks of any length."""
    pairs = zip(block_digests(one, block), block_digests(other, block), strict=False)
    for number, (a, b) in enumerate(pairs, 1):
        assert (a == b) == (one[: number * block] == other[: number * block])
    assert len(block_digests(one, block)) == len(one) // block


def test_what_nobody_knows_goes_home_unless_that_is_busy():
    """A known prefix counts for more."""
    router = Router(0)
    router.extend(3)
    router.remember(2, block_digests(prompt(1)))
    idle = dict.fromkeys(range(3), 0.0)
    assert router.choose(block_digests(prompt(5)), idle, home=1) == 1
    assert router.choose(block_digests(prompt(5)), {**idle, 1: LEAD + 0.1}, home=1) != 1
    assert router.choose(block_digests(prompt(1)), idle, home=1) == 2
    router.extend(1)  # there is room already
    assert router.known(2, block_digests(prompt(1))) == 1


def test_a_session_stays_with_its_replica():
    """Whatever its prompts are, and wherever their prefix was served, while that replica is not too busy."""
    router, busy = Router(2), {0: 0.0, 1: 0.0}
    router.remember(0, block_digests(prompt(1, 2)))
    router.remember(1, block_digests(prompt(7)), "mine")
    digests = block_digests(prompt(1, 2))
    assert router.choose(digests, busy) == router.choose(digests, busy, "other") == 0
    assert router.choose(digests, busy | {1: LEAD}, "mine") == 1
    assert router.choose(digests, busy | {1: LEAD + 0.1}, "mine") == 0
    router.forget(1)
    assert router.choose(digests, busy, "mine") == 0


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routing, "MOST_SESSIONS", 2)
    router = Router(2)
    for session in "abcab":
        router.remember(1, [], session)
    assert list(router._sessions) == ["a", "b"]
