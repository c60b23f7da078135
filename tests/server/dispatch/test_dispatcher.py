"""Who runs where: laws over kills, drains, slow engines and clients that leave, then case by case."""

import gc
import itertools
from dataclasses import replace
from weakref import ref

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distaff.runtime.request import EngineFailed, Overloaded
from distaff.server.dispatch.admission import Admission
from distaff.server.dispatch.tracked_sequence import MOST_DEATHS, PROGRESS

from .scripted import INFO, POISON, SLOTS, World, heard, request, token_at

ENGINES = st.integers(0, 2)


class AnyFate(RuleBasedStateMachine):
    """Whatever happens, every admitted request gets exactly one end, no token twice, and none is missing."""

    @initialize(engines=st.integers(1, 3))
    def start(self, engines: int) -> None:
        self.world = World(engines)
        self.aborted: set[str] = set()
        self.wanted: dict[str, int] = {}
        self.poisoned = False
        self.world.begin(0)

    def number(self, number: int) -> int:
        return number % len(self.world.engines)

    @precondition(lambda self: self.world.dispatcher.takes)
    @rule(
        client=st.sampled_from("abc"),
        tokens=st.integers(1, 40),
        prompt=st.integers(1, 5),
        n=st.integers(1, 4),
        background=st.booleans(),
        priority=st.sampled_from([0, 0, -1, 7]),
        weight=st.sampled_from([1.0, 1.0, 0.3, 5.0]),
    )
    def submit(
        self, client: str, tokens: int, prompt: int, n: int, background: bool, priority: int, weight: float
    ) -> None:
        names = [f"{len(self.wanted)}-{choice}" for choice in range(n)]
        self.wanted |= dict.fromkeys(names, tokens)
        beginning = (prompt,) * 70 + tuple(range(n))
        self.world.submit(
            *(request(name, tokens, client, beginning, 0, background, priority, weight) for name in names)
        )

    @precondition(lambda self: not self.poisoned and self.world.dispatcher.takes)
    @rule(at=st.integers(0, 30))
    def poison(self, at: int) -> None:
        self.poisoned = True
        self.world.submit(request("poison", at + 5, "d", (POISON, at)))

    @rule(number=ENGINES, steps=st.integers(1, 20))
    def step(self, number: int, steps: int) -> None:
        for _ in range(steps):
            if self.world.engines[self.number(number)].state in ("ready", "draining"):
                self.world.step(self.number(number))

    @rule(number=ENGINES)
    def kill(self, number: int) -> None:
        if self.world.engines[self.number(number)].state in ("ready", "draining"):
            self.world.kill(self.number(number))

    @rule(number=ENGINES)
    def kill_from_outside(self, number: int) -> None:
        if self.world.engines[self.number(number)].state in ("ready", "draining"):
            self.world.kill(self.number(number), by_others=True)

    @rule(number=ENGINES)
    def begin(self, number: int) -> None:
        if self.world.engines[self.number(number)].state == "restarting":
            self.world.begin(self.number(number))

    @rule(number=ENGINES)
    def drain(self, number: int) -> None:
        if self.world.engines[self.number(number)].state == "ready":
            self.world.drain(self.number(number))

    @rule(seconds=st.floats(0.0, 10.0))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        """A client goes away."""
        running = [name for name, stream in self.world.streams.items() if not stream.ended]
        if running:
            name = running[which % len(running)]
            self.aborted.add(name)
            self.world.streams[name].abort()

    @invariant()
    def nothing_is_lost(self) -> None:
        running = sum(not stream.ended for stream in self.world.streams.values())
        assert self.world.dispatcher.under_way == running
        for engine, handle in zip(self.world.engines, self.world.handles, strict=True):
            assert set(engine.rows) == set(handle.open)

    @invariant()
    def nobody_waits_while_an_engine_has_room(self) -> None:
        """But for who runs apart, and who waits for an engine that knows its beginning. Whoever waits for an
        engine so keeps no worse rank from the others."""
        dispatcher = self.world.dispatcher
        self.world.wait()
        if dispatcher._isolated is not None:
            return
        for rank, queue in dispatcher._queues.by_rank():
            held = [dispatcher._affinity.holds(each) for each in queue]
            if not any(held):
                assert not any(handle.has_slot(rank) for handle in self.world.handles)
            if not all(held):
                break

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for number, engine in enumerate(self.world.engines):
            if engine.state == "draining":
                self.world.kill(number)
        self.world.run()
        for name, stream in self.world.streams.items():
            self.check(name, *heard(stream))

    def check(self, name: str, tokens: list[int], end: str | EngineFailed) -> None:
        asked = self.world.streams[name].request
        assert tokens == [token_at(asked, position) for position in range(len(tokens))]
        if name in self.aborted:
            return
        if name == "poison":
            assert isinstance(end, EngineFailed) and len(tokens) <= asked.prompt[1]
        elif isinstance(end, EngineFailed):
            # Only who was running at several deaths, and alone at the last of them, may be taken for guilty;
            # background sequences are never run alone.
            least = 2 if asked.background else 3
            assert [given.id.split("~")[0] for engine in self.world.engines for given in engine.given].count(
                name
            ) >= least
        else:
            assert end == "length" and len(tokens) == self.wanted[name]


TestAnyFate = AnyFate.TestCase
TestAnyFate.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def begun(world: World, number: int) -> list[str]:
    """Which requests an engine was given, in order."""
    return [given.id for given in world.engines[number].given]


def test_what_waits_goes_to_whichever_engine_is_ready_next():
    world = World()
    world.begin(0)
    world.submit(*(request(str(i), 50) for i in range(8)))
    assert (len(begun(world, 0)), world.dispatcher.queued[0]) == (SLOTS, 5)
    world.begin(1)
    assert (len(begun(world, 1)), world.dispatcher.queued[0]) == (SLOTS, 2)


def test_a_sequence_goes_on_behind_what_it_has_said():
    world = World()
    world.begin(0)
    (stream,) = world.submit(request("a", 10))
    for _ in range(4):
        world.step(0)
    world.kill(0)
    world.begin(1)
    (given,) = world.engines[1].given
    assert given.generated == tuple(token_at(given, position) for position in range(4))
    assert given.id != "a" and given.params == stream.request.params
    world.run()
    assert heard(stream) == ([token_at(given, position) for position in range(10)], "length")
    assert world.dispatcher.moved == {"engine_lost": 1, "preempted": 0, "draining": 0, "balanced": 0}


def test_a_sequence_that_began_elsewhere_is_never_refused_and_goes_on_behind_what_it_has_said():
    """Also when it is moved again."""
    world = World(2, Admission(max_wait=0.0))
    world.begin(0)
    world.submit(*(request(f"{n}", 40, "a") for n in range(SLOTS)))
    said = tuple(token_at(request("late", 9, "b"), position) for position in range(3))
    [stream] = world.submit(replace(request("late", 9, "b"), generated=said, interrupted=True))
    world.step(0)
    world.begin(1)
    world.kill(0, by_others=True)
    world.run()
    assert heard(stream) == ([token_at(stream.request, n) for n in range(3, 9)], "length")


def test_an_engine_that_is_ready_again_gets_its_part_of_what_runs():
    """The youngest sequences move to it until the engines are even, and go on behind what they said."""
    world = World(3)
    for number in range(3):
        world.begin(number)
    streams = world.submit(*(request(str(i), 12) for i in range(7)))
    world.step(0)
    world.kill(2)
    assert [len(handle.open) for handle in world.handles] == [SLOTS, SLOTS, 0]
    world.engines[2].given.clear()
    world.begin(2)
    assert sorted(len(handle.open) for handle in world.handles) == [2, 2, 3]
    assert world.dispatcher.moved["balanced"] == 1
    world.run()
    for stream in streams:
        given = stream.request
        assert heard(stream) == ([token_at(given, position) for position in range(12)], "length")


def test_an_engine_that_still_compiles_gets_nothing_of_what_runs():
    """As soon as it has compiled its steps it does, and only once."""
    world = World()
    world.begin(0)
    world.submit(*(request(str(i), 50) for i in range(3)))
    world.engines[1].buckets_ready = 1
    world.begin(1)
    world.step(0)
    assert begun(world, 1) == []
    world.engines[1].buckets_ready = 2
    world.step(0)
    assert begun(world, 1) == ["2~1"]
    world.dispatcher._all().__next__().stream.abort()
    world.wait()
    world.submit(request("new", 50))
    assert world.dispatcher.moved["balanced"] == 1


def test_a_sequence_whose_grammar_would_be_compiled_again_stays():
    world = World()
    world.begin(0)
    with_grammar = [replace(request(name, 50).params, grammar="g") for name in "abc"]
    given = [
        replace(request(name, 50), params=params) for name, params in zip("abc", with_grammar, strict=True)
    ]
    world.submit(*given)
    world.begin(1)
    assert world.dispatcher.moved["balanced"] == 0 and begun(world, 1) == []


def test_a_client_does_not_pay_for_balanced_engines():
    """Its counter, which decides who is next, stays as it is."""
    world = World()
    world.begin(0)
    world.submit(*(request(str(i), 50) for i in range(3)))
    given = dict(world.dispatcher._queues.of((False, 0))._given)
    world.begin(1)
    assert world.dispatcher.moved["balanced"] == 1 and world.dispatcher._queues.of((False, 0))._given == given


@pytest.mark.parametrize(("length", "moved"), [(20, 1), (21, 0)])
def test_only_what_is_soon_computed_again_moves_to_an_engine_that_is_ready(length: int, moved: int):
    """A token takes a tenth of a second, and two seconds are allowed."""
    world = World()
    world.begin(0)
    world.submit(*(request(str(i), 50, prompt=tuple(range(length))) for i in range(3)))
    world.begin(1)
    assert world.dispatcher.moved["balanced"] == len(begun(world, 1)) == moved


def test_the_stream_that_has_paused_longest_continues_first():
    world = World()
    world.begin(0)
    world.begin(1)
    world.submit(request("first", 10), request("second", 10))
    assert (begun(world, 0), begun(world, 1)) == (["first"], ["second"])
    world.step(1)
    world.step(0)
    for number in range(2):
        world.kill(number, by_others=True)
    world.submit(request("new", 10))
    world.engines[0].given.clear()
    world.begin(0)
    assert [given.id for given in world.engines[0].given] == ["second~1", "first~2", "new"]


def test_an_engine_of_other_weights_continues_nothing_that_has_begun():
    world = World(1)
    world.begin(0)
    begun_before, *_, waiting = world.submit(*(request(str(i), 10) for i in range(SLOTS + 1)))
    world.step(0)
    world.kill(0)
    world.engines[0].state = "ready"
    world.dispatcher.ready(world.handles[0], replace(INFO, fingerprint="1" * 10))
    tokens, end = heard(begun_before)
    assert len(tokens) == 1 and isinstance(end, EngineFailed) and "answers differently" in str(end)
    world.run()
    assert heard(waiting)[1] == "length"


def test_a_request_that_kills_its_engine_ends_at_the_third_death_and_the_others_go_on():
    world = World(1)
    world.begin(0)
    others = world.submit(*(request(str(i), 60) for i in range(16)))
    (poison,) = world.submit(request("poison", 50, prompt=(POISON, 5)))
    deaths = 0
    while world.dispatcher.under_way:
        world.step(0)
        if world.engines[0].state != "ready":
            deaths += 1
            world.begin(0)
    assert deaths == 3
    tokens, end = heard(poison)
    assert len(tokens) == 5 and isinstance(end, EngineFailed)
    for other in others:
        assert heard(other) == ([token_at(other.request, position) for position in range(60)], "length")


def test_a_suspect_runs_alone_until_it_is_past_the_position_of_the_crashes():
    world = World(1)
    world.begin(0)
    world.submit(*(request(str(i), 60) for i in range(3)))
    for _ in range(2):
        world.step(0)
        world.kill(0)
        world.begin(0)
    alone = [len(world.engines[0].rows)]
    while len(world.engines[0].rows) == 1:
        world.step(0)
        alone.append(len(world.engines[0].rows))
    assert 3 * PROGRESS <= len(alone) <= 3 * (PROGRESS + 3)
    assert len(world.engines[0].rows) == 3


@pytest.mark.parametrize(("by_others", "progress"), [(False, PROGRESS + 1), (True, 1), (True, 0)])
def test_no_sequence_is_suspected_for_distant_crashes_or_for_kills_from_outside(
    by_others: bool, progress: int
):
    world = World(1)
    world.begin(0)
    (stream, *_) = world.submit(*(request(str(i), 200) for i in range(SLOTS)))
    for _ in range(8):
        for _ in range(progress):
            world.step(0)
        world.kill(0, by_others=by_others)
        world.begin(0)
        assert len(world.engines[0].rows) == SLOTS  # nobody runs alone
    world.run()
    assert heard(stream)[1] == "length"


def test_kills_from_outside_do_not_hide_a_request_that_crashes_its_engine():
    world = World(1)
    world.begin(0)
    (poison,) = world.submit(request("poison", 50, prompt=(POISON, 5)))
    crashes = 0
    while world.dispatcher.under_way:
        world.kill(0, by_others=True)
        world.begin(0)
        while world.engines[0].state == "ready" and world.dispatcher.under_way:
            world.step(0)
        crashes += 1
        world.begin(0)
    assert crashes == 3 and isinstance(heard(poison)[1], EngineFailed)


@pytest.mark.parametrize(("by_others", "progress"), [(False, PROGRESS + 1), (True, 0)])
def test_no_sequence_outlives_too_many_engines(by_others: bool, progress: int):
    world = World(1)
    world.begin(0)
    (stream,) = world.submit(request("a", 4000))
    while not stream.ended:
        for _ in range(progress):
            world.step(0)
        world.kill(0, by_others=by_others)
        world.begin(0)
    assert isinstance(heard(stream)[1], EngineFailed)
    assert world.dispatcher.moved["engine_lost"] == MOST_DEATHS


@pytest.mark.parametrize("before_the_kill", [True, False])
def test_a_sequence_does_not_wait_for_ever_for_an_engine(before_the_kill: bool):
    """Neither one that ran in the lost engine, nor one that came while that restarted."""
    world = World(most_pause=60.0)
    world.begin(0)
    if before_the_kill:
        (stream,) = world.submit(request("a", 50))
    world.kill(0)
    if not before_the_kill:
        (stream,) = world.submit(request("a", 50))
    world.wait(59.0)
    assert not stream.ended
    world.wait(2.0)
    tokens, end = heard(stream)
    assert tokens == [] and isinstance(end, EngineFailed) and "within 60 s" in str(end)


def test_a_moved_sequence_is_not_kept_after_its_end():
    """Although there is a timer for its longest pause, which may be minutes."""
    world = World(most_pause=1e6)
    world.begin(0)
    world.submit(request("a", 5))
    held = ref(next(world.dispatcher._all()))
    world.kill(0)
    world.run()
    world.streams.clear()
    gc.collect()
    assert held() is None and world._timers


def test_a_drained_engine_gives_up_what_it_has_not_begun_and_finishes_the_rest():
    world = World()
    world.begin(0)
    world.submit(request("begun", 50))
    world.step(0)
    world.submit(request("new", 50))
    world.begin(1)
    world.drain(0)
    assert (list(world.engines[0].rows), begun(world, 1)) == (["begun"], ["new~1"])
    world.submit(request("late", 50))
    assert begun(world, 1)[1:] == ["late"]


def test_a_second_client_has_a_slot_at_once_and_half_of_them_at_most():
    world = World(2)
    world.begin(0)
    world.begin(1)
    first = world.submit(*(request(f"a{i}", 50, "a") for i in range(20)))
    world.submit(*(request(f"b{i}", 50, "b") for i in range(5)))
    running = [name[0] for engine in world.engines for name in engine.rows]
    assert sorted(running) == ["a"] * 3 + ["b"] * 3
    assert world.dispatcher.moved["preempted"] == 3
    world.run()
    assert all(heard(stream)[1] == "length" for stream in first)


def test_where_clients_are_more_than_slots_nobody_is_moved():
    world = World(1)
    world.begin(0)
    for number in range(8):
        world.submit(request(str(number), 50, str(number)))
    assert world.dispatcher.moved["preempted"] == 0


def test_a_client_that_floods_is_refused_and_another_is_not():
    world = World(1, Admission(max_wait=100.0))
    world.begin(0)
    with pytest.raises(Overloaded, match="the wait would be") as refused:
        for number in range(500):
            world.submit(request(f"a{number}", 50, "a"))
    assert 1.0 <= refused.value.retry_after <= 60.0
    assert 4 <= world.dispatcher.under_way <= 10  # 75 s of 50 s each in three slots
    (stream,) = world.submit(request("b", 5, "b"))
    assert "b" in world.engines[0].rows and not stream.ended


def test_the_wait_for_an_engine_that_restarts_counts():
    """Who would wait too long for it is refused, until then; the others wait in the queue."""
    world = World(1, Admission(max_wait=40.0))
    world.begin(0)
    world.kill(0)
    world.engines[0].ready_in = 30.0
    with pytest.raises(Overloaded, match=r"the wait would be 30\.0 s") as refused:
        world.submit(request("a", 5))
    assert 1.0 <= refused.value.retry_after <= 30.0
    world.engines[0].ready_in = 20.0
    world.submit(request("b", 5))
    assert world.dispatcher.queued[0] == 1 and not begun(world, 0)
    world.begin(0)
    assert begun(world, 0) == ["b"]


def test_those_who_are_refused_are_told_different_times():
    """As if all of them came back when told to: each finds room."""
    world = World(1, Admission(max_wait=10.0))
    world.begin(0)
    world.submit(*(request(str(i), 10) for i in range(6)))
    told = []
    for number in range(4):
        with pytest.raises(Overloaded) as refused:
            world.submit(request(f"late{number}", 10))
        told.append(refused.value.retry_after)
    pace = (10 + 0.3) / SLOTS
    assert [b - a for a, b in itertools.pairwise(told)] == pytest.approx([pace] * 3)


def test_where_the_operator_allows_one_the_next_is_told_when_that_ends():
    world = World(1, Admission(most_under_way=1))
    world.begin(0)
    world.submit(request("a", 50))
    with pytest.raises(Overloaded, match="the most is 1") as refused:
        world.submit(request("b", 50))
    assert refused.value.retry_after == pytest.approx(50.3)


def test_pages_are_counted_before_slots():
    world = World(1)
    info = replace(INFO, page_size=16, pages=10)
    engine = world.engines[0]
    engine.info, engine.free_pages, engine.total_pages = info, 10, 10
    world.begin(0)
    world.submit(request("a", 50, prompt=(1,) * 100), request("b", 50, prompt=(2,) * 100))
    assert list(engine.rows) == ["a"]  # 7 pages each, and one more for each that grows
    engine.free_pages = 3
    world.step(0)
    assert list(engine.rows) == ["a"]
    engine.free_pages = 8
    world.step(0)
    assert list(engine.rows) == ["a", "b"]


@pytest.mark.parametrize(("blocks", "elsewhere"), [(1, True), (8, False)])
def test_an_engine_that_knows_much_of_a_prompt_is_worth_waiting_for(blocks: int, elsewhere: bool):
    """A token of a prompt takes 0.1 s, so a block 6.4 s; the next slot there is free in about 20 s."""
    world = World(2)
    world.begin(0)
    beginning = (7,) * 64 * blocks
    world.submit(*(request(str(i), 20 + i, prompt=beginning) for i in range(3)))
    for _ in range(2):
        world.step(0)
    world.begin(1)
    world.submit(request("next", 20, prompt=beginning))
    assert bool(world.engines[1].rows) is elsewhere
    assert world.dispatcher.queued[0] == (not elsewhere)
    world.wait(64 * blocks * 0.1)
    assert world.engines[1].rows and not world.dispatcher.queued[0]


def waiting_for_its_beginning() -> World:
    """A world in which `next` waits for a slot of the full engine 0, while engine 1 has room."""
    world = World(2)
    world.begin(0)
    beginning = (7,) * 64 * 8
    world.submit(*(request(str(i), 20 + i, "a", beginning) for i in range(3)))
    for _ in range(2):
        world.step(0)
    world.begin(1)
    world.submit(request("a", 20, "a"))
    world.submit(request("next", 20, "b", beginning))
    assert world.dispatcher.queued[0] == 1 and list(world.engines[1].rows) == ["a"]
    return world


def test_who_waits_for_an_engine_is_given_to_it_as_soon_as_it_has_room():
    world = waiting_for_its_beginning()
    world.streams["0"].abort()
    world.wait()
    assert "next" in world.engines[0].rows


def test_who_waits_for_an_engine_that_dies_goes_elsewhere():
    world = waiting_for_its_beginning()
    world.kill(0)
    assert "next" in world.engines[1].rows


def test_who_waits_for_an_engine_keeps_nobody_else_waiting():
    """Neither those behind it, nor is anybody moved for it while another engine has room."""
    world = waiting_for_its_beginning()
    world.submit(request("behind", 20, "b"))
    assert list(world.engines[1].rows) == ["a", "behind"]
    assert world.dispatcher.moved["preempted"] == 0


def with_pages(world: World, pages: int) -> None:
    """Engines that have so many pages, all free."""
    for number, engine in enumerate(world.engines):
        engine.info = replace(INFO, pages=pages)
        engine.free_pages = engine.total_pages = pages
        world.begin(number)


@pytest.mark.parametrize(("priority", "background"), [(9, False), (0, True)])
def test_who_waits_for_an_engine_keeps_no_worse_rank_waiting(priority: int, background: bool):
    """And takes the place of those when it waits no longer."""
    world = waiting_for_its_beginning()
    world.submit(
        *(request(f"low{n}", 90, "c", background=background, priority=priority) for n in range(SLOTS))
    )
    assert list(world.engines[1].rows) == ["a", "low0", "low1"]
    world.wait(64 * 8 * 0.1)
    assert "next" in world.engines[1].rows and "low1" not in world.engines[1].rows


def test_who_lacks_a_slot_keeps_worse_ranks_waiting():
    """Also if others of its rank only wait for an engine."""
    world = waiting_for_its_beginning()
    world.submit(*(request(f"more{n}", 20, "c") for n in range(SLOTS)))
    world.submit(request("low", 5, "d", priority=9))
    assert "low" not in begun(world, 0) + begun(world, 1) and len(world.engines[1].rows) == SLOTS


def test_a_sequence_that_lacks_pages_is_not_overtaken_for_ever():
    """Others are small and come all the time; what it needs is never free beside them."""
    world = World(1)
    with_pages(world, 64)
    engine = world.engines[0]
    for number in range(SLOTS):
        world.submit(request(f"small{number}", 2 + 2 * number, f"s{number}", (1,) * 100))
    world.submit(request("large", 5, "l", (2,) * 900))
    for number in range(SLOTS, 40):
        engine.free_pages = 64 - 8 * len(engine.rows)
        world.step(0)
        world.submit(request(f"small{number}", 6, f"s{number}", (1,) * 100))
        if "large" in engine.rows:
            break
    assert "large" in engine.rows
    waiting = begun(world, 0)
    engine.free_pages = 40  # as long as it has not begun, nothing else is sent that would take its pages
    world.submit(request("late", 5, "z", (1,) * 100))
    world.dispatcher.dispatch()
    assert begun(world, 0) == waiting


def test_a_client_that_holds_all_pages_makes_way_for_another_that_needs_many():
    world = World(1)
    with_pages(world, 64)
    engine = world.engines[0]
    world.submit(*(request(f"a{number}", 500, "a", (1,) * 250) for number in range(20)))
    engine.free_pages = 16
    world.step(0)
    world.submit(request("b", 5, "b", (2,) * 900))
    for _ in range(3):
        world.step(0)
    assert "b" in engine.rows and world.dispatcher.moved["preempted"] == 1


def test_an_engine_that_has_said_nothing_yet_is_taken_for_empty():
    """Else it would be given one sequence, and no other before the first token of that."""
    world = World(1)
    with_pages(world, 64)
    world.engines[0].free_pages = world.engines[0].total_pages = 0  # as after the start
    world.submit(*(request(str(number), 5, prompt=(1,) * 100) for number in range(SLOTS)))
    assert len(world.engines[0].rows) == SLOTS


def test_who_comes_back_when_told_to_finds_room_though_others_keep_asking():
    world = World(1, Admission(max_wait=100.0))
    world.begin(0)

    def ask(name: str, prompt: int) -> float:
        """0.0 if it enters, else when to come back."""
        try:
            world.submit(request(name, 10, prompt=(prompt,) * 3))
        except Overloaded as refused:
            return refused.retry_after
        return 0.0

    number = 100
    while ask(f"first{number}", number) == 0.0:
        number += 1
    told = ask("back", 1)
    due = world.now + told
    while world.now < due:
        world.step(0)
        number += 1
        ask(f"other{number}", number)
    assert ask(f"other{number + 1}", number + 1) > 0.0
    assert ask("back", 1) == 0.0
    assert ask("forth", 1) > 0.0  # once


def test_most_of_those_who_come_back_when_told_to_find_room_though_answers_are_long():
    """Slots that all become free at about the same time, and newcomers enough to take each of them."""
    world = World(1, Admission(max_wait=100.0))
    world.begin(0)
    numbers = itertools.count(100)
    patient: list[tuple[float, int]] = []
    found = []

    def ask(prompt: int, tokens: int) -> float:
        try:
            world.submit(request(f"r{next(numbers)}", tokens, prompt=(prompt,) * 3))
        except Overloaded as refused:
            return refused.retry_after
        return 0.0

    while world.now < 2000.0:
        prompt = next(numbers)
        told = ask(prompt, 90)
        if told and prompt % 20 == 0:
            patient.append((world.now + told, prompt))
        for each in [each for each in patient if each[0] <= world.now]:
            patient.remove(each)
            found.append(ask(each[1], 8) == 0.0)
        world.step(0)
    assert len(found) > 40 and sum(found) >= 0.8 * len(found)


def test_the_forecast_follows_how_quick_the_engines_are():
    """A step is thought to take 1 s; the clock says 4."""
    world = World(1, Admission(max_wait=1000.0))
    world.begin(0)
    streams = world.submit(*(request(str(i), 50) for i in range(6)))
    for _ in range(20):
        world.step(0)
        world.wait(3.0)
    with pytest.raises(Overloaded):
        while True:
            world.submit(request(f"more{len(world.streams)}", 50))
    assert len(world.streams) - len(streams) == pytest.approx(700 / (200 / SLOTS), abs=3)


def test_suspects_that_wait_count_towards_an_operators_bound():
    world = World(1, Admission(most_under_way=3, max_wait=1e9))
    world.begin(0)
    world.submit(*(request(str(i), 60) for i in range(3)))
    for _ in range(2):
        world.step(0)
        world.kill(0)
        world.begin(0)
    assert world.dispatcher.queued[0] == 2  # one of the suspects has the engine to itself
    with pytest.raises(Overloaded, match="3 requests are in progress"):
        world.submit(request("one too many", 60))
