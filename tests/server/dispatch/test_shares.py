"""Which client is next, and how long a request waits: laws, compared with models computed by hand."""

import heapq
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distaff.runtime.request import Overloaded, Request, SamplingParams
from distaff.server.dispatch.admission import MOST_TOKENS, Admission
from distaff.server.dispatch.fair_queue import FairQueue
from distaff.server.dispatch.forecast import Forecast, Steps, wait
from distaff.server.dispatch.queue_ahead import QueueAhead, queue_ahead

from .scripted import SLOTS, World, request

CLIENTS = st.sampled_from("abc")


@dataclass(eq=False)
class Entry:
    client: str
    arrival: int
    cost: float
    length: int = 1
    weight: float = 1.0

    @property
    def order(self) -> tuple[float, int]:
        return 0.0, self.arrival


class Shares(RuleBasedStateMachine):
    """The queue against lists that are searched each time; whole costs, so that sums are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Entry] = FairQueue()
        self.waiting: list[Entry] = []
        self.running: list[Entry] = []
        self.given: dict[str, float] = {}
        self.weights = dict.fromkeys("abc", 1.0)
        self.time = 0.0
        self.arrivals = 0

    @precondition(lambda self: not self.waiting and not self.running)
    @rule(client=CLIENTS, weight=st.sampled_from([0.5, 1.0, 4.0]))
    def weigh(self, client: str, weight: float) -> None:
        """Powers of two, so that divisions are exact."""
        self.weights[client] = weight

    def order(self, client: str) -> list[Entry]:
        mine = [entry for entry in self.waiting if entry.client == client]
        return sorted(mine, key=lambda entry: entry.arrival)

    def remove_idle_clients(self) -> None:
        busy = {entry.client for entry in self.waiting + self.running}
        self.given = {client: given for client, given in self.given.items() if client in busy}

    def entry_level(self, client: str) -> float:
        """What a client counts as having been given, when one more of it comes."""
        given = self.given.get(client, 0.0)
        if self.order(client):
            return given
        waiting = {entry.client for entry in self.waiting}
        return max(given, self.time, min((self.given[each] for each in waiting), default=0.0))

    @rule(client=CLIENTS, cost=st.integers(1, 9), length=st.integers(1, 50))
    def arrive(self, client: str, cost: int, length: int) -> None:
        self.given[client] = self.entry_level(client)
        self.arrivals += 1
        self.waiting.append(Entry(client, self.arrivals, cost, length, self.weights[client]))
        self.queue.push(self.waiting[-1])

    @precondition(lambda self: self.waiting)
    @rule()
    def serve_next(self) -> None:
        entry = self.queue.queues()[0][0]
        self.queue.take(entry)
        self.waiting.remove(entry)
        self.running.append(entry)
        self.given[entry.client] += entry.cost / entry.weight
        self.time += entry.cost / sum(self.weights[client] for client in self.given)

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0), returns=st.booleans())
    def end(self, number: int, returns: bool) -> None:
        """One ends, or is taken from its engine and waits again, before those that came later."""
        entry = self.running.pop(number % len(self.running))
        self.queue.give_back(entry.client)
        self.remove_idle_clients()
        if returns:
            self.given[entry.client] = self.entry_level(entry.client)
            self.waiting.append(entry)
            self.queue.push(entry)

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0))
    def leave(self, number: int) -> None:
        entry = self.waiting.pop(number % len(self.waiting))
        self.queue.remove(entry)
        self.remove_idle_clients()

    @invariant()
    def sums_are_those_of_the_lists(self) -> None:
        assert len(self.queue) == len(self.waiting) and set(self.queue) == set(self.waiting)
        assert self.queue.tokens == sum(entry.length for entry in self.waiting)
        assert self.queue.clients == len({entry.client for entry in self.waiting + self.running})
        for client in "abc":
            mine = self.order(client)
            assert self.queue.waiting(client) == len(mine)
            assert self.queue.running(client) == sum(entry.client == client for entry in self.running)
            assert self.queue.tokens_of(client) == sum(entry.length for entry in mine)
            assert self.queue.cost_of(client) == sum(entry.cost for entry in mine)
            assert self.queue.mean_cost(client) * len(mine) == pytest.approx(self.queue.cost_of(client))
        assert self.queue.mean_cost() * len(self.waiting) == pytest.approx(
            sum(entry.cost for entry in self.waiting)
        )

    @invariant()
    def the_client_that_was_given_least_is_next(self) -> None:
        queues = self.queue.queues()
        assert {queue[0].client: queue for queue in queues} == {
            client: self.order(client) for client in "abc" if self.order(client)
        }
        counts = [self.given[queue[0].client] for queue in queues]
        assert counts == sorted(counts)

    @invariant()
    def the_work_before_a_new_entry_is_what_is_served_before_it(self) -> None:
        """Within the cost of one entry of each other client: an entry is not served in part."""
        for client in "abc":
            before, given = 0.0, dict(self.given)
            start = given[client] = self.entry_level(client)
            queues = {each: self.order(each) for each in "abc"}
            while queues[client]:
                entry = min(filter(None, queues.values()), key=lambda queue: given[queue[0].client])
                given[entry[0].client] += entry[0].cost / entry[0].weight
                before += entry.pop(0).cost
            assert given[client] == pytest.approx(start + self.queue.cost_of(client) / self.weights[client])
            others = [queue for queue in queues.values() if queue and queue[0].client != client]
            for queue in others:
                while queue and given[queue[0].client] < given[client]:
                    given[queue[0].client] += queue[0].cost / queue[0].weight
                    before += queue.pop(0).cost
            slack = sum(
                max((e.cost for e in self.order(each)), default=0) for each in "abc" if each != client
            )
            assert abs(self.queue.cost_before(client, self.weights[client]) - before) <= slack + 1e-6


@given(
    weights=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4),
    costs=st.lists(st.floats(1.0, 9.0), min_size=1, max_size=5),
    served=st.integers(1, 80),
)
def test_in_saturation_clients_receive_service_in_proportion_to_their_weights(weights, costs, served):
    """Within the cost of one entry, for each unit of weight."""
    queue: FairQueue[Entry] = FairQueue()
    for number, weight in enumerate(weights):
        for place in range(served):
            cost = costs[(place + number) % len(costs)]
            queue.push(Entry(str(number), place, cost, 1, weight))
    received = [0.0] * len(weights)
    for _ in range(served):
        entry = queue.queues()[0][0]
        queue.take(entry)
        queue.give_back(entry.client)
        received[int(entry.client)] += entry.cost / entry.weight
    assert max(received) - min(received) <= max(costs) / min(weights) + 1e-6
    left = {name: weights[int(name)] for name in queue.names}
    for name, weight in left.items():
        assert abs(queue.share(name, 64) - 64 * weight / sum(left.values())) < 1 + 1e-6


def test_new_clients_cannot_keep_a_client_waiting_forever():
    """Two of its entries were served; a new client comes with each that is served, before it is its turn."""
    queue: FairQueue[Entry] = FairQueue()
    arrivals = iter(range(10_000))
    for _ in range(4):
        queue.push(Entry("old", next(arrivals), 10.0))
    served: list[str] = []
    while served.count("old") < 4:
        for _ in range(2):
            queue.push(Entry(f"new{len(served)}-{_}", next(arrivals), 10.0))
        entry = queue.queues()[0][0]
        queue.take(entry)
        queue.give_back(entry.client)
        served.append(entry.client)
        assert len(served) < 200


TestShares = Shares.TestCase
TestShares.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def simulated(costs: list[float], left: list[float], slots: int) -> float:
    """When the one behind all of `costs` begins."""
    ends = [*left, *[0.0] * (slots - len(left))]
    heapq.heapify(ends)
    while len(ends) > slots:
        heapq.heappop(ends)
    for cost in costs:
        heapq.heappush(ends, heapq.heappop(ends) + cost)
    return ends[0]


@given(
    waiting=st.integers(0, 60),
    cost=st.floats(0.01, 100.0),
    left=st.lists(st.floats(0.0, 300.0), max_size=12),
    slots=st.integers(1, 8),
)
def test_the_wait_is_exact_if_all_waiting_sequences_cost_the_same(
    waiting: int, cost: float, left: list[float], slots: int
) -> None:
    """Whatever runs, however far it is, and be it more than the share of slots."""
    expected = simulated([cost] * waiting, left, slots)
    assert wait(waiting, cost, left, slots) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("waiting", "expected"), [(0, 10.0), (3, 10.0), (4, 20.0), (7, 20.0), (8, 30.0), (39, 100.0)]
)
def test_sequences_that_began_together_end_together(waiting: int, expected: float) -> None:
    assert wait(waiting, 10.0, [10.0] * 4, 4) == expected


@pytest.mark.parametrize(("waiting", "expected"), [(0, 2.5), (1, 5.0), (3, 10.0), (9, 25.0)])
def test_sequences_that_began_one_after_the_other_end_one_after_the_other(
    waiting: int, expected: float
) -> None:
    assert wait(waiting, 10.0, [2.5, 5.0, 7.5, 10.0], 4) == expected


@given(
    costs=st.lists(st.floats(1.0, 4.0), min_size=1, max_size=60),
    left=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=8),
)
def test_with_unequal_costs_the_wait_is_off_by_less_than_two_of_the_longest(
    costs: list[float], left: list[float]
) -> None:
    mean = sum(costs) / len(costs)
    expected = simulated(costs, left, len(left))
    assert abs(wait(len(costs), mean, left, len(left)) - expected) <= 2 * max(*costs, *left)


MEASURED = [Steps(decode=0.5, prompt=0.1)]


def make_request(
    tokens: int | None, prompt: int = 10, client: str = "", stop_ids: tuple[int, ...] = (1,)
) -> Request:
    params = SamplingParams(max_tokens=tokens, stop_ids=stop_ids)
    return Request(id="r", prompt=(2,) * prompt, params=params, client=client)


def test_a_forecast_counts_steps() -> None:
    forecast = Forecast()
    forecast.factor = 1.0
    assert forecast.cost(make_request(20)) == 0.0
    forecast.learn_steps(MEASURED)
    assert forecast.cost(make_request(20)) == pytest.approx(10 * 0.1 + 20 * 0.5)
    assert forecast.cost(make_request(20), known=5) == pytest.approx(15 * 0.1 + 15 * 0.5)
    assert forecast.left(make_request(20), 5, started=True) == pytest.approx(15 * 0.5)
    assert forecast.left(make_request(20), 30, started=True) == pytest.approx(0.5)
    assert forecast.prompt_seconds(64) == pytest.approx(6.4)


def test_measured_speed_is_kept_when_steps_are_timed_again() -> None:
    """And of several engines the mean counts."""
    forecast = Forecast()
    forecast.factor = 1.0
    forecast.learn_steps(MEASURED)
    for second in range(1, 101):
        forecast.progress(0, 2)
        forecast.elapse(second * 3.0, 1)
    forecast.learn_steps([Steps(decode=0.1, prompt=0.02), Steps(decode=0.3, prompt=0.06)])
    assert forecast.cost(make_request(20)) == pytest.approx(33, rel=0.01)
    assert forecast.factor == pytest.approx(7.5, rel=0.01)


@given(factor=st.floats(0.05, 50.0), running=st.integers(1, 40))
def test_a_forecast_learns_how_slow_the_engines_are(factor: float, running: int) -> None:
    """From what came of slots: so many sequences, each `factor` seconds for what is tried to take one."""
    forecast = Forecast()
    forecast.factor = 1.0
    forecast.learn_steps(MEASURED)
    for second in range(1, 101):
        for _ in range(running):
            forecast.progress(0, 2)
        forecast.elapse(second * factor, running)
    assert forecast.factor == pytest.approx(factor, rel=0.01)
    assert forecast.cost(make_request(20)) == pytest.approx(11 * factor, rel=0.01)
    for second in range(1, 101):  # twice as slow from now on
        for _ in range(running):
            forecast.progress(0, 2)
        forecast.elapse((100 + 2 * second) * factor, running)
    assert forecast.factor == pytest.approx(2 * factor, rel=0.01 if factor > 0.5 else 0.5)


@pytest.mark.parametrize("rounds", [0, 9, 10])
def test_the_first_token_after_an_idle_time_says_nothing_about_speed(rounds: int) -> None:
    """Also where the idle time interrupts a window of the measurement."""
    forecast = Forecast()
    forecast.learn_steps(MEASURED)
    now = 0.0
    for _ in range(rounds):
        forecast.progress(0, 2)
        forecast.elapse(now := now + 1.0, 1)
    before = forecast.factor
    forecast.elapse(now := now + 3600.0, 0)
    forecast.elapse(now := now + 3.0, 0)
    forecast.progress(25, 1, waited=3.0)
    forecast.elapse(now + 0.5, 1)
    assert forecast.factor == before


def test_the_time_of_a_prompts_step_counts_from_its_first_token() -> None:
    """Three sequences are in slots for 11 s, which is what the prompt and a token of one of them take."""
    world = World(1)
    world.begin(0)
    forecast = world.dispatcher._forecast
    forecast.factor = 2.0
    world.submit(*(request(name, 50, prompt=(2,) * 100) for name in "abc"))
    world.wait(11.0)
    for _ in range(5):
        world.dispatcher.receive(world.handles[0], [world.engines[0]._say("a")])
        world.wait(1.0)
    assert forecast.factor == pytest.approx(1.0, rel=0.1)


@given(length=st.integers(1, 500))
def test_a_forecast_learns_how_long_answers_are(length: int) -> None:
    forecast = Forecast()
    forecast.factor = 1.0
    forecast.learn_steps(MEASURED)
    for _ in range(120):
        forecast.learn(length)
    assert forecast.cost(make_request(None)) == pytest.approx(1 + length * 0.5)
    assert forecast.cost(make_request(2 * length)) == pytest.approx(1 + length * 0.5)
    assert forecast.cost(make_request(2 * length, stop_ids=())) == pytest.approx(1 + length)


@given(others=st.integers(0, 12), steps=st.integers(0, 8))
@settings(deadline=None)
def test_a_new_sequence_gets_its_slot_when_predicted(others: int, steps: int) -> None:
    """Scripted engines whose tokens take a second; all of one client, alike, but begun when they could."""
    world = World(engines=1)
    world.begin(0)
    for number in range(others):
        world.submit(request(f"{number}", 10, "a"))
        world.wait(0.0)
    for _ in range(steps):
        world.step(0)
    newcomer = request("new", 10, "a")
    dispatcher = world.dispatcher
    line = queue_ahead(
        newcomer, dispatcher._queues, world.handles, dispatcher._forecast, dispatcher.under_way
    )
    world.submit(newcomer)
    world.wait(0.0)
    waited = 0
    while "new" not in world.engines[0].rows:
        world.step(0)
        waited += 1
    assert line.wait == pytest.approx(waited, rel=0.1, abs=2.0)


def test_a_client_below_its_share_does_not_wait() -> None:
    world = World(engines=1)
    world.begin(0)
    for number in range(40):
        world.submit(request(f"{number}", 100, "a"))
    dispatcher = world.dispatcher
    lines = {
        client: queue_ahead(
            request("x", 100, client), dispatcher._queues, world.handles, dispatcher._forecast, 40
        )
        for client in "ab"
    }
    assert lines["b"].wait == 0.0
    assert lines["a"].wait >= 100 * (40 // SLOTS - 1)


def test_retry_after_counts_as_many_refused_requests_as_usually_come_back() -> None:
    admission, line = Admission(max_wait=40.0), QueueAhead(wait=30.0, pace=2.0)

    def retry_after(prompt: int, now: float) -> float:
        with pytest.raises(Overloaded) as refused:
            admission.check([make_request(1, prompt=prompt)], line, now)
        return refused.value.retry_after or 0.0

    first = [retry_after(prompt, 0.0) for prompt in range(1, 21)]  # nobody of them comes back
    assert first[1] - first[0] == pytest.approx(2.0)
    later = [retry_after(prompt, 1000.0) for prompt in (101, 102)]
    assert later[1] - later[0] == pytest.approx(2.0 * 0.98**20)
    easy = QueueAhead(wait=10.0, pace=2.0)
    for turn in range(2000):  # and now everybody
        due = 2000.0 + turn * 100.0
        seconds = retry_after(1000 + turn, due)
        admission.check([make_request(1, prompt=1000 + turn)], easy, due + seconds)
    last = [retry_after(prompt, 1e6) for prompt in (101, 102)]
    assert last[1] - last[0] == pytest.approx(2.0, rel=0.01)


@given(wanted=st.floats(0.0, 100.0))
def test_a_request_that_would_wait_too_long_gets_the_time_when_there_is_room(wanted: float) -> None:
    admission, line = Admission(max_wait=40.0), QueueAhead(wait=wanted, pace=2.0)
    if wanted <= 26.0:
        admission.check([make_request(1)], line, 0.0)
        return
    seconds = []
    for turn in range(3):
        with pytest.raises(Overloaded) as refused:
            admission.check([make_request(1, prompt=1 + turn)], line, 0.0)
        seconds.append(refused.value.retry_after)
    assert seconds == pytest.approx([min(wanted - 26.0 + 2.0 * turn, 60.0) for turn in range(3)])


def test_waiting_prompts_are_bounded_except_for_clients_within_their_share() -> None:
    most = QueueAhead(tokens=MOST_TOKENS, own_tokens=MOST_TOKENS // 2, clients=2)
    with pytest.raises(Overloaded, match="prompt tokens wait"):
        Admission().check([make_request(1)], most, 0.0)
    Admission().check([make_request(1)], QueueAhead(tokens=MOST_TOKENS, own_tokens=0, clients=2), 0.0)


@pytest.mark.timeout(30)
def test_a_client_whose_weight_changes_does_not_swap_places_with_another_for_ever():
    """The sequence that makes way has the weight of before, which must not give its client the place back."""
    world = World(3)
    for number in range(3):
        world.begin(number)
    calls = [("a", 5.0, 3), ("c", 5.0, 3), ("a", 0.3, 4), ("c", 1.0, 3), ("b", 1.0, 3)]
    for number, (client, weight, count) in enumerate(calls):
        world.submit(*(request(f"{number}-{n}", 20, client, weight=weight) for n in range(count)))
    assert world.dispatcher.moved["preempted"] <= 9
    world.run()
