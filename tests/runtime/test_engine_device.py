"""The engine on the device: nothing compiled late, steps overlapped, memory constant."""

import gc
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from distaff.model.sharding import create_mesh
from distaff.model.transformer import Skeleton
from distaff.runtime.device.executables import Executables
from distaff.runtime.device.steps import create_state

from .tiny import CONFIG, EventCollector, ask


def test_nothing_is_compiled_after_the_start(bench, monkeypatch):
    """A mixture of requests that uses every bucket and every kind of sampling compiles nothing."""
    runner, visited = bench.engine._loop.runner, set()
    dispatch = runner._dispatch
    monkeypatch.setattr(
        runner, "_dispatch", lambda bucket, buffer: visited.add(bucket) or dispatch(bucket, buffer)
    )
    odd = {"temperature": 0.9, "top_p": 0.9, "logprobs": 3, "presence_penalty": 0.5, "min_p": 0.01}
    for rows in (1, 2, 3, 8):
        for length in (1, 20, 50, 90):
            bench.run([ask(f"{rows}.{length}.{n}", length, max_tokens=4) for n in range(rows)])
        bench.run([ask(f"g{rows}.{n}", 9, max_tokens=4, grammar="2,9", **odd) for n in range(rows)])
    bench.run([ask(f"odd{n}", 30, max_tokens=12, top_k=n * 60, **odd) for n in range(4)])
    bench.run([ask("scored", 30, max_tokens=2, prompt_logprobs=2, pool_prompt=True)])
    bench.run([ask("adjusted", 30, max_tokens=2, logit_bias=((3, 1.0),), repetition_penalty=1.1)])
    assert visited == set(runner.shapes.buckets())
    assert bench.engine.stats.compilations == 0


def test_the_likeliest_ids_are_found_without_sorting_the_vocabulary(warm_runner):
    """No compiled step contains a sort, which takes twenty times as long on a CPU."""
    for bucket in warm_runner.shapes.buckets():
        text = warm_runner._executables.step(bucket).as_text()
        assert "TopK" in text and " sort(" not in text, bucket


def test_compilations_are_counted(bench):
    """Only those on the engine's thread, where requests wait."""
    jax.jit(lambda x: x * 5 + 2)(jnp.arange(6)).block_until_ready()
    assert bench.engine.stats.compilations == 0
    bench.engine._loop.enqueue(lambda: jax.jit(lambda x: x * 3 + 1)(jnp.arange(5)).block_until_ready())
    bench.run([ask("next", 3, max_tokens=1)])
    assert bench.engine.stats.compilations > 0


def test_the_next_step_is_launched_before_the_last_is_read(bench, monkeypatch):
    """The device has work while the host reads: launch n+1, then read n, for all steps except the last."""
    runner, calls = bench.engine._loop.runner, []
    launch, read = runner.launch, runner.read
    monkeypatch.setattr(runner, "launch", lambda plan: calls.append("launch") or launch(plan))
    monkeypatch.setattr(runner, "read", lambda in_flight: calls.append("read") or read(in_flight))
    bench.run([ask("alone", 5, max_tokens=30)])
    assert calls == ["launch"] + ["launch", "read"] * 29 + ["read"]


def test_a_step_is_in_flight_while_grammars_compute_masks(bench, monkeypatch):
    """Launch n+1, read n, and only then the masks for n+1, while the device computes its logits."""
    runner, calls = bench.engine._loop.runner, []
    for name in ("launch", "read", "sample_masked"):
        method = getattr(runner, name)
        monkeypatch.setattr(runner, name, lambda given, n=name, m=method: calls.append(n) or m(given))
    bench.run([ask("held", 5, max_tokens=20, grammar="2,30")])
    steps = [["launch", "sample_masked"], *[["launch", "read", "sample_masked"]] * 19, ["read"]]
    assert calls == [call for step in steps for call in step]


class Scale(EventCollector):
    """Adds up the sizes of all live arrays after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def receive(self, events) -> None:
        self.sizes.append(sum(array.nbytes for array in jax.live_arrays()))
        super().receive(events)


def test_memory_is_constant(make_engine):
    """The total size of live arrays does not change over a hundred decode steps."""
    gc.collect()
    scale = Scale()
    engine = make_engine(scale.receive)
    engine.start()
    for n in range(4):
        engine.submit(ask(f"r{n}", 4, max_tokens=130))
    for n in range(4):
        assert len(scale.tokens(f"r{n}")) == 130
    assert len(set(scale.sizes[10:110])) == 1


def test_every_step_works_in_place(warm_runner):
    """The state is donated: in every compiled step the aliased bytes include the cache."""
    cache = sum(pool.nbytes for pool in warm_runner._state.cache)
    for bucket in warm_runner.shapes.buckets():
        memory = warm_runner._executables.step(bucket).memory_analysis()
        assert memory.alias_size_in_bytes >= cache, f"{bucket} copies the cache"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_temporaries_do_not_grow_with_the_pool(warm_runner, index, monkeypatch):
    """With twice the pages a step needs one byte more for each: nothing copies the pool."""
    shapes, skeleton = warm_runner.shapes, Skeleton.of(CONFIG)
    bucket = shapes.buckets()[index]
    twice = Executables(skeleton, shapes, create_mesh(1))
    twice.layouts = {bucket: twice.layouts[bucket]}
    pages = 2 * warm_runner._state.cache[0].shape[0]
    state = jax.eval_shape(lambda: create_state(skeleton, shapes, pages, jnp.dtype("float32")))
    twice.compile([bucket], warm_runner.leaves, state, lambda done, total: None)
    once = warm_runner._executables.step(bucket).memory_analysis().temp_size_in_bytes
    assert twice.step(bucket).memory_analysis().temp_size_in_bytes <= once + pages


@pytest.mark.parametrize("mask", [0, 7])
def test_no_array_of_the_state_is_empty(warm_runner, mask):
    """With and without grammars: on a mesh JAX 0.11's compiler crashes on an empty array."""
    shapes = replace(warm_runner.shapes, mask=mask)
    state = jax.eval_shape(lambda: create_state(Skeleton.of(CONFIG), shapes, 9, jnp.dtype("float32")))
    assert all(array.size for array in jax.tree.leaves(state))


def test_the_context_is_whole_pages_for_every_slot(warm_runner):
    """The derived pool has pages for every slot at full length, and the trash page."""
    pages = warm_runner._state.cache[0].shape[0]
    assert pages == 1 + 8 * -(-CONFIG.context // 4)
