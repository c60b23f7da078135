"""Requests whose grammars are compiled on their way in: aborts on the way take effect."""

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.request import InvalidRequest, NotReady, Request, TokenEvent
from distaff.server.worker.submissions import Submissions

from ..engines.engine_processes import request


class Engine:
    """Records what is in it; accepts a request with a grammar when it is allowed to."""

    def __init__(self) -> None:
        self.inside: dict[str, int] = {}
        self.arrivals = itertools.count()
        self.compiling = threading.Semaphore(0)
        self.allowed = threading.Event()

    def next_arrival(self) -> int:
        return next(self.arrivals)

    def submit(self, request: Request, arrival: int | None = None) -> None:
        arrival = next(self.arrivals) if arrival is None else arrival
        if request.params.grammar is not None:
            self.compiling.release()
            assert self.allowed.wait(10)
        self.inside[request.id] = arrival

    def abort(self, request_id: str) -> None:
        self.inside.pop(request_id, None)


def test_an_abort_while_its_grammar_is_compiled_takes_effect():
    engine = Engine()
    submissions = Submissions(engine, lambda refused: None)
    submissions.submit(request("a", grammar="slow"))
    assert engine.compiling.acquire(timeout=5)
    submissions.abort("a")
    engine.allowed.set()
    submissions._pool.shutdown()
    assert not engine.inside


def test_a_request_whose_grammar_is_compiled_keeps_its_place():
    engine = Engine()
    submissions = Submissions(engine, lambda refused: None)
    for name, grammar in [("a", "slow"), ("b", None), ("c", "slow"), ("d", None)]:
        submissions.submit(request(name, grammar=grammar))
    assert sorted(engine.inside) == ["b", "d"]
    engine.allowed.set()
    submissions._pool.shutdown()
    assert sorted(engine.inside, key=lambda name: engine.inside[name]) == ["a", "b", "c", "d"]


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12))
def test_what_is_in_the_engine_in_the_end_is_what_was_not_aborted(plan: list[tuple[bool, bool, bool]]):
    """Whatever comes with a grammar, is aborted at once, or is aborted after all others were submitted."""
    engine = Engine()
    submissions = Submissions(engine, lambda refused: None)
    for number, (constrained, at_once, _) in enumerate(plan):
        submissions.submit(request(str(number), grammar="g" if constrained else None))
        if at_once:
            submissions.abort(str(number))
        if number == len(plan) // 2:
            engine.allowed.set()
    for number, (_, _, later) in enumerate(plan):
        if later:
            submissions.abort(str(number))
    engine.allowed.set()
    submissions._pool.shutdown()
    kept = {str(number) for number, (_, at_once, later) in enumerate(plan) if not (at_once or later)}
    assert set(engine.inside) == kept


@pytest.mark.parametrize(
    ("error", "param", "lost"),
    [
        (NotReady("the engine does not run"), None, True),
        (InvalidRequest("choice is -1", "choice"), "choice", False),
        (RuntimeError("a defect"), None, False),
    ],
)
def test_only_a_request_that_met_no_running_engine_is_lost(error, param, lost):
    """Another engine may take that one; what was refused for its own sake would be refused again."""

    class Refusing(Engine):
        def submit(self, request: Request, arrival: int | None = None) -> None:
            raise error

    refused: list[TokenEvent] = []
    Submissions(Refusing(), refused.append).submit(request("a"))
    (event,) = refused
    assert (event.request_id, event.finish, event.param, event.lost) == ("a", "error", param, lost)
