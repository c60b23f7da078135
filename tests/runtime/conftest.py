"""Engines on one tiny model, which is compiled once per session and shared by all of them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import pytest

from distaff.runtime.device import settings
from distaff.runtime.device.runner import Runner
from distaff.runtime.device.settings import EngineSettings, Platform
from distaff.runtime.engine import Engine
from distaff.runtime.request import Request

from .tiny import CONFIG, EventCollector, ModuloGrammar, make_parameters

TINY = Platform(slots=8, budget=96, page_size=4, dtype="float32")


class Bench:
    """A running engine and the collector of its events."""

    def __init__(self, engine: Engine, collector: EventCollector) -> None:
        self.engine, self.collector = engine, collector

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        """The tokens of each request; all are submitted at once and end without errors."""
        for request in requests:
            self.engine.submit(request)
        return [self.collector.tokens(request.id) for request in requests]

    def wait_idle(self) -> None:
        """Waits until the engine has no work, and checks that all pages are free."""
        deadline = time.monotonic() + 30
        while self.engine.stats.waiting or self.engine.stats.running:
            assert time.monotonic() < deadline, f"still busy: {self.engine.stats}"
            time.sleep(0.002)
        self.engine._pages.check()
        assert self.engine.stats.free_pages == self.engine.stats.total_pages


@pytest.fixture(scope="package")
def parameters() -> dict[str, jax.Array]:
    return make_parameters()


@pytest.fixture(scope="package", autouse=True)
def tiny_platform() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.PLATFORMS, "cpu", TINY)
        yield


@pytest.fixture(scope="package")
def warm_runner(parameters) -> Runner:
    """The model with every step compiled, and pages for all slots."""
    engine = Engine(CONFIG, parameters, EngineSettings(grammars=True, scores=True))
    engine.warm_up()
    complete(engine._loop.runner)
    return engine._loop.runner


def complete(runner: Runner) -> None:
    """Compiles the remaining steps of a runner, and makes them ready."""
    quiet = threading.Event()
    quiet.set()
    runner.compile_rest(threading.Event(), quiet)
    while runner.has_compiled:
        runner.add_compiled()


@pytest.fixture
def make_engine(parameters, warm_runner) -> Iterator[Callable[..., Engine]]:
    """Creates engines that share the compiled runner, one running at a time; stops them at the end.

    An engine with fewer `kv_pages` uses only the first pages of the runner's pool. Speculation is off by
    default, because it depends on the times of steps.
    """
    engines: list[Engine] = []

    def make(on_events=None, **wanted) -> Engine:
        settings = EngineSettings(**{"speculation": False, "grammars": True, "scores": True, **wanted})
        engine = Engine(CONFIG, parameters, settings, on_events, grammars=ModuloGrammar)
        engine._loop.runner = warm_runner
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture
def bench(make_engine) -> Bench:
    """A running engine with pages for all requests."""
    collector = EventCollector()
    engine = make_engine(collector.receive)
    engine.start()
    return Bench(engine, collector)


@pytest.fixture
def cramped(make_engine) -> Bench:
    """A running engine with pages for one or two sequences at a time."""
    collector = EventCollector()
    engine = make_engine(collector.receive, kv_pages=44)
    engine.start()
    return Bench(engine, collector)
