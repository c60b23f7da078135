"""Trials of steps: full rows, and no trace of them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from distaff.model.config import ModelConfig, MoEConfig
from distaff.model.transformer import random_parameters
from distaff.runtime.device.buckets import Bucket, Shapes
from distaff.runtime.device.settings import EngineSettings
from distaff.runtime.device.trials import trial_rows
from distaff.runtime.engine import Engine
from distaff.runtime.request import NOT_FINITE

MIXTRAL = ModelConfig(
    vocabulary=64, layers=1, width=16, feed_forward=24, heads=2, kv_heads=1, head_size=8, context=64,
    moe=MoEConfig(experts=4, experts_per_token=2),
)  # fmt: skip


def counted(bucket: Bucket, rows) -> int:
    return len(rows) if bucket.kind == "sample" else sum(row.count for row in rows)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("slots", "budget", "table"), [(4, 96, 50), (8, 8, 3), (64, 300, 16), (2, 100, 2)])
def test_a_trial_fills_its_step(slots, budget, table, single):
    """As many tokens as the step (or its sequences) can hold, all at valid positions."""
    shapes = Shapes(
        slots=slots, budget=budget, page_size=4, table=table, tile=8, single=single, mask=7, scores=not single
    )
    for bucket in shapes.buckets():
        rows = trial_rows(bucket, shapes, 199)
        most = bucket.rows * 4 * table if bucket.tiled else bucket.rows
        assert counted(bucket, rows) == min(bucket.tokens, most) and len(rows) <= bucket.rows
        assert all(row.slot == slots and row.samples and not row.first for row in rows)
        assert all(0 <= row.start and row.start + row.count <= 4 * table for row in rows)
        assert all(row.sequence.pages == [] for row in rows)
        assert not any(row.scored for row in rows)


def test_experts_run_in_a_trial():
    """NaN experts show in every sample of a step's trial, and nowhere afterwards; nothing is scored."""
    parameters = random_parameters(MIXTRAL, 1, np.dtype("float32"))
    parameters |= {
        name: np.nan * weight for name, weight in parameters.items() if ".feed_forward.down" in name
    }
    engine = Engine(MIXTRAL, parameters, EngineSettings(slots=4, prefill_tokens=16, scores=True))
    runner, sampled = engine._loop.runner, []
    dispatch = runner._dispatch

    def note(bucket, buffer):
        outcome = dispatch(bucket, buffer)
        scored_T = [] if outcome[1] is None else np.asarray(outcome[1].logprob_TX)[:, 0]
        sampled.append((np.asarray(outcome[0].token_B), scored_T))
        return outcome

    runner._dispatch = note
    engine.warm_up()
    decode = next(bucket for bucket in runner.shapes.buckets() if bucket.kind == "decode")
    runner._executables.compile([decode], runner.leaves, runner._abstract_state, lambda *_: None)
    runner._compiled.put(decode)
    runner.add_compiled()
    (mixed_B, scored_T), (decode_B, _) = sampled
    assert mixed_B[0] == NOT_FINITE
    assert np.all(scored_T == 0) and len(scored_T) == 16
    assert np.all(decode_B == NOT_FINITE) and len(decode_B) == 4
    assert not np.asarray(runner._state.broken_S).any() and not np.asarray(runner._state.broken_P).any()


def test_an_engine_reports_the_times_of_full_steps(make_engine, monkeypatch):
    """Of decoding in all slots, in a larger step until theirs is compiled; per token of a prompt."""
    engine = make_engine()
    mixed = Bucket(kind="mixed", tokens=96, rows=8)
    decode = Bucket(kind="decode", tokens=8, rows=8)
    small, sampler = replace(decode, tokens=4, rows=4), replace(decode, kind="sample")
    assert {mixed, decode, small, sampler} <= set(engine._loop.runner.ready)
    figures = []
    for ready in ({}, {mixed: 4.8, sampler: 9.0}, {mixed: 4.8, sampler: 9.0, small: 0.1, decode: 0.2}):
        monkeypatch.setattr(engine._loop.runner, "ready", ready)
        figures.append((engine.decode_seconds, engine.prompt_seconds))
    assert figures == [(0.0, 0.0), (4.8, 4.8 / 96), (0.2, 4.8 / 96)]
    assert (engine.page_size, engine.pages) == (4, engine.stats.total_pages)


def test_a_trial_leaves_no_trace(warm_runner):
    """After every kind of step, everything that a sequence could read has the same bits as before."""
    before = jax.tree.map(np.array, warm_runner._state)
    for bucket in warm_runner.shapes.buckets():
        warm_runner._run_trial(bucket)
    after = jax.tree.map(np.array, warm_runner._state)
    for old, new in zip(before.cache, after.cache, strict=True):
        np.testing.assert_array_equal(old[1:], new[1:])
    for name in before._fields[1:]:
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name), err_msg=name)
