"""Experts with weights in groups by the portable backend, and by the one for TPUs, which passes them to it.

`test_native_experts.py` has the native backend, `test_triton_grouped_experts.py` the one for GPUs. The
oracle is a plain sum over experts in float64 with rows rounded as in `quantize.py`. A hidden value on an
edge may be rounded to the other side, so a 127th of the largest in a group is allowed, times a weight:
together less than a hundredth of the largest output.
"""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from distaff.model.kernels.block_experts import block_experts
from distaff.model.kernels.linear import grouped_plain
from distaff.model.kernels.registry import ExpertWeights
from distaff.model.kernels.tpu.ragged_experts import ragged_experts
from distaff.model.parameters import Quantization
from distaff.model.quantize import GroupedWeight

NAMES = ("gate", "up", "down")
IN_GROUPS: tuple[Quantization, ...] = ("int4", "int8-groups")
COUNT, WIDTH, INNER = 4, 64, 96
Step = tuple[np.ndarray, np.ndarray, np.ndarray]


@cache
def drawn(kind: Quantization, count: int = COUNT, width: int = WIDTH, inner: int = INNER) -> ExpertWeights:
    """Any bytes, and scales and lows with which weights are of the size of those of a model."""
    rng = np.random.default_rng([count, width, inner])
    parts = {}
    for name, (inputs, outputs) in zip(NAMES, ((width, inner), (width, inner), (inner, width)), strict=True):
        half, groups = inputs**-0.5, (count, inputs // 32, outputs)
        scale = rng.uniform(0.5, 1, groups) * half / (8 if kind == "int4" else 100)
        parts[f"{name}_scale"] = jnp.asarray(scale, jnp.float16)
        if kind == "int4":
            parts[name] = jnp.asarray(rng.integers(0, 256, (count, inputs // 2, outputs), np.uint8))
            parts[f"{name}_low"] = jnp.asarray(-8 * scale, jnp.float16)
        else:
            parts[name] = jnp.asarray(rng.integers(-128, 128, (count, inputs, outputs), np.int8))
    return ExpertWeights(**parts)


def inputs(tokens: int, choices: int = 2, count: int = COUNT, width: int = WIDTH, seed: int = 1) -> Step:
    """Tokens, their experts (a fifth are none) and their weights."""
    rng = np.random.default_rng([seed, tokens, choices, count])
    expert_TX = rng.integers(0, count, (tokens, choices), np.int32)
    expert_TX[rng.random((tokens, choices)) < 0.2] = count
    weight_TX = rng.random((tokens, choices), np.float32)
    return rng.standard_normal((tokens, width), np.float32), expert_TX, weight_TX


def oracle(step: Step, experts: ExpertWeights, *, rounded: bool = True) -> np.ndarray:
    """All rows through every expert in float64, then each token's choices."""
    x_TD, expert_TX, weight_TX = step
    gate_ETF, up_ETF = (_products(x_TD, experts, name, rounded) for name in ("gate", "up"))
    hidden_ETF = (gate_ETF / (1 + np.exp(-gate_ETF)) * up_ETF).astype(np.float32)
    y_ETD = np.stack([_products(hidden_ETF[e], experts, "down", rounded)[e] for e in range(experts.count)])
    out_TD = np.zeros(x_TD.shape)
    for t, x in zip(*np.nonzero(expert_TX < experts.count), strict=True):
        out_TD[t] += weight_TX[t, x] * y_ETD[expert_TX[t, x], t]
    return out_TD


def _products(x_TD: np.ndarray, experts: ExpertWeights, name: str, rounded: bool) -> np.ndarray:
    """Of all rows and every expert."""
    if not rounded:
        return x_TD.astype(np.float64) @ widened(experts, name)
    x_TG32 = x_TD.reshape(len(x_TD), -1, 32)
    scale_TG1 = np.maximum(np.abs(x_TG32).max(-1, keepdims=True), np.float32(1e-30)) * np.float32(1 / 127)
    rounded_TD = (np.rint(x_TG32 * (1 / scale_TG1)) * scale_TG1.astype(np.float64)).reshape(x_TD.shape)
    return rounded_TD @ widened(experts, name)


def widened(experts: ExpertWeights, name: str) -> np.ndarray:
    """The weights, f64 `[E, D, F]`."""
    w, scale, low = (getattr(experts, f"{name}{part}") for part in ("", "_scale", "_low"))
    scale_EDF = np.repeat(np.asarray(scale, np.float64), 32, axis=1)
    if low is None:
        return np.asarray(w) * scale_EDF
    q_EDF = np.empty(scale_EDF.shape)
    q_EDF[:, 0::2], q_EDF[:, 1::2] = np.asarray(w) & 15, np.asarray(w) >> 4
    return q_EDF * scale_EDF + np.repeat(np.asarray(low, np.float64), 32, axis=1)


SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
"""Experts, groups of D, groups of F."""


@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # shrinking would compile for minutes
@given(st.sampled_from(IN_GROUPS), st.integers(1, 100), st.integers(1, 3), SIZES)
def test_it_is_the_sum_over_experts(kind, tokens, choices, sizes):
    count, width, inner = sizes[0], 32 * sizes[1], 32 * sizes[2]
    step, experts = inputs(tokens, choices, count, width), drawn(kind, count, width, inner)
    expected_TD, found_TD = oracle(step, experts), jax.jit(block_experts)(*step, experts)
    np.testing.assert_allclose(found_TD, expected_TD, atol=0.01 * max(1e-3, np.abs(expected_TD).max()))


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_equal_experts_are_one_feed_forward(kind):
    """Whatever the router says, if its weights add up to one; a hidden value may round to the other side."""
    (x_TD, expert_TX, weight_TX), experts = inputs(20), drawn(kind)
    expert_TX, weight_TX = np.minimum(expert_TX, COUNT - 1), weight_TX / weight_TX.sum(1, keepdims=True)
    equal = jax.tree.map(lambda part: jnp.broadcast_to(part[1:2], part.shape), experts)
    gate, up, down = (parts_of(experts, name, 1) for name in NAMES)
    gate_TF, up_TF = grouped_plain(jnp.asarray(x_TD), gate, up)
    (expected_TD,) = grouped_plain(jax.nn.silu(gate_TF) * up_TF, down)
    found_TD = jax.jit(block_experts)(x_TD, expert_TX, weight_TX, equal)
    np.testing.assert_allclose(found_TD, expected_TD, atol=2e-3)


def parts_of(experts: ExpertWeights, name: str, e: int) -> GroupedWeight:
    w, scale, low = (getattr(experts, f"{name}{part}") for part in ("", "_scale", "_low"))
    return w[e], scale[e], None if low is None else low[e]


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_rows_are_not_rounded_for_tpus(kind):
    """The same sums as the oracle's, to within f32's roundings."""
    step, experts = inputs(9), drawn(kind)
    found_TD, expected_TD = jax.jit(ragged_experts)(*step, experts), oracle(step, experts, rounded=False)
    np.testing.assert_allclose(found_TD, expected_TD, atol=1e-5)


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_other_tokens_and_place_change_no_bit(kind):
    """A token gets the same bits whatever else is in the step and whatever its place is."""
    run, mine_X, experts = jax.jit(block_experts), np.int32([2, 0]), drawn(kind)
    own_D, found = inputs(1)[0][0], []
    for seed, place, crowd in [(1, 0, None), (2, 6, None), (3, 3, 0), (4, 5, 2), (5, 1, COUNT)]:
        x_TD, expert_TX, weight_TX = inputs(40, seed=seed)
        if crowd is not None:
            expert_TX[:] = [crowd, COUNT]
        x_TD[place], expert_TX[place], weight_TX[place] = own_D, mine_X, [0.25, 0.75]
        found.append(np.asarray(run(x_TD, expert_TX, weight_TX, experts))[place])
        np.testing.assert_array_equal(found[-1], found[0])
    assert found[0].any()


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_padding_affects_no_token(kind):
    """Tokens without an expert come out as zero, also if they hold NaN, and change no other token."""
    x_TD, expert_TX, weight_TX = inputs(30)
    expert_TX[::3] = COUNT
    poisoned_TD = np.where(np.arange(30)[:, None] % 3 == 0, np.float32(np.nan), x_TD)
    run = jax.jit(block_experts)
    clean_TD, found_TD = (run(x, expert_TX, weight_TX, drawn(kind)) for x in (x_TD, poisoned_TD))
    np.testing.assert_array_equal(found_TD, clean_TD)
    assert not np.asarray(found_TD[::3]).any() and np.asarray(found_TD).any()


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_one_expert_is_widened_at_a_time(kind):
    """The program holds no stack in f32."""
    step, experts = inputs(30), drawn(kind)
    text = jax.jit(block_experts).lower(*step, experts).compile().as_text()
    assert re.search(rf"f32\[(1,)?({WIDTH},{INNER}|2,32,{INNER})\]", text)
    assert not re.search(rf"f32\[{COUNT},\d+,(\d+,)?({WIDTH}|{INNER})\]", text)


def test_bfloat16_stays_close():
    x_TD, *rest = inputs(7)
    found_TD = jax.jit(block_experts)(jnp.asarray(x_TD, jnp.bfloat16), *rest, drawn("int4"))
    assert found_TD.dtype == jnp.bfloat16
    expected_TD = oracle((x_TD, *rest), drawn("int4"))
    np.testing.assert_allclose(
        found_TD.astype(jnp.float32), expected_TD, atol=0.03 * np.abs(expected_TD).max()
    )
