"""Copies of pages in host memory: an engine continues where a dead one was, a small pool forgets nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax.numpy as jnp
import pytest

from distaff.model.sharding import create_mesh, place_all
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.engine import Engine
from distaff.runtime.policy.page_file import PageFile
from distaff.runtime.request import Request

from .conftest import Bench
from .tiny import CONFIG, POISON, EventCollector, ask, random_prompt

PAGE = 4
GROUP = 8
"""Pages that are copied at a time."""
SETTINGS = EngineSettings(
    slots=2, context=96, prefill_tokens=16, kv_pages=40, host_kv_pages=100, deterministic=True
)


@pytest.fixture
def page_file() -> Iterator[PageFile]:
    """An empty file."""
    descriptor = os.memfd_create("pages")
    yield PageFile(descriptor, "tiny")
    os.close(descriptor)


@pytest.fixture(scope="module")
def finite(parameters):
    """The tiny model's parameters without poison."""
    return dict(parameters) | {"embed": jnp.nan_to_num(parameters["embed"])}


@contextmanager
def running(parameters, page_file: PageFile | None, devices: int = 1, **changed) -> Iterator[Bench]:
    """An engine that keeps copies in the file; at the end it is stopped, and its pool is lost."""
    collector, mesh = EventCollector(), create_mesh(devices)
    placed = place_all(parameters, CONFIG, mesh)
    wanted = replace(SETTINGS, **changed)
    engine = Engine(CONFIG, placed, wanted, collector.receive, mesh, page_file=page_file)
    engine.warm_up()
    engine.start()
    yield Bench(engine, collector)
    assert engine.stats.compilations == 0
    engine.stop()


def asked(name: str, seed: int, pages: int = GROUP) -> Request:
    """A request with a prompt that fills some pages."""
    return replace(ask(name, 1, max_tokens=6, logprobs=2), prompt=random_prompt(pages * PAGE + 1, seed=seed))


def answers(bench: Bench, request: Request) -> tuple[int, list]:
    """The number of prompt tokens that were not computed; tokens and log-probabilities."""
    bench.run([request])
    events = bench.collector.wait(request.id)
    return events[0].cached_tokens, [(event.token, event.logprobs) for event in events]


@pytest.mark.parametrize(
    ("devices", "changed"),
    [(1, {}), (1, {"kv_cache_dtype": "int8"}), (2, {})],
    ids=["f32", "int8", "two devices"],
)
def test_an_engine_finds_what_a_dead_one_has_computed(finite, page_file, devices, changed):
    """To the bit. A pool that is too small for all prompts finds them again, too."""
    with running(finite, page_file, devices, **changed) as bench:
        first = answers(bench, asked("first", 1))
        assert first[0] == 0
    with running(finite, page_file, devices, **changed) as bench:
        assert answers(bench, asked("again", 1)) == (GROUP * PAGE, first[1])
        assert bench.engine.stats.restored_pages == GROUP
        assert answers(bench, asked("pool", 1)) == (GROUP * PAGE, first[1])
        assert bench.engine.stats.restored_pages == GROUP, "they were in the pool"
        for seed in range(2, 7):
            assert answers(bench, asked(f"other {seed}", seed))[0] == 0
        assert answers(bench, asked("evicted", 1)) == (GROUP * PAGE, first[1])
        assert bench.engine.stats.restored_pages == 2 * GROUP
        bench.wait_idle()


def test_an_interrupted_sequence_continues_from_its_copies(finite, page_file):
    """Its generated tokens are not computed again either, up to the last whole group."""
    request = replace(asked("whole", 1, pages=2), params=replace(asked("", 1).params, max_tokens=70))
    with running(finite, page_file) as bench:
        _, whole = answers(bench, request)
    tokens = [token for token, _ in whole]
    with running(finite, page_file) as bench:
        part = replace(request, id="part", generated=tuple(tokens[:60]))
        assert answers(bench, part)[1] == whole[60:]
        assert bench.engine.stats.restored_pages == 2 * GROUP
        assert bench.engine.stats.prompt_tokens < 2 * GROUP


def test_an_engine_finds_what_another_one_has_computed(finite, page_file):
    """To the bit, whether the other one still runs or not; it need not have the same number of pages."""
    own = os.memfd_create("own")
    reader = replace(page_file, descriptor=own, peers=(page_file.descriptor,))
    with running(finite, page_file, host_kv_pages=70) as other:
        first = answers(other, asked("first", 1))
        with running(finite, reader) as bench:
            assert answers(bench, asked("beside", 1)) == (GROUP * PAGE, first[1])
    with running(finite, reader) as bench:
        assert answers(bench, asked("alone", 1)) == (GROUP * PAGE, first[1])
        assert bench.engine.stats.restored_pages == GROUP
    os.close(own)


def test_broken_pages_are_not_copied(parameters, page_file):
    """So a prompt whose first page has numbers that are not finite is computed again, and fails again."""
    prompt = (POISON, *random_prompt(2 * GROUP * PAGE, seed=1))
    for name in ("first", "again"):
        with running(parameters, page_file) as bench:
            bench.engine.submit(replace(ask(name, 1), prompt=prompt))
            assert bench.collector.wait(name)[-1].finish == "error"
            host = bench.engine._loop.runner.host_pages
            assert host is not None and host.copies == 2 * GROUP - 1
            assert bench.engine.stats.restored_pages == 0


@pytest.mark.parametrize(
    ("file", "changed"), [(False, {}), (True, {"prefix_cache": False}), (True, {"host_kv_pages": 0})]
)
def test_nothing_is_kept_unless_it_can_be_found(finite, page_file, file, changed):
    """Without a file, without shared pages, or as configured."""
    placed = place_all(finite, CONFIG, create_mesh(1))
    engine = Engine(CONFIG, placed, replace(SETTINGS, **changed), page_file=page_file if file else None)
    assert engine._loop.runner.host_pages is None
