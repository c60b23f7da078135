"""Native experts against the portable backend, for every instruction set of this CPU.

The law: a token's bits depend on its own row and the weights alone.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from distaff.model.kernels.block_experts import block_experts
from distaff.model.kernels.cpu.native_experts import native_experts
from distaff.model.kernels.registry import ExpertWeights
from distaff.model.layout import form_of
from distaff.model.quantize import quantize_linear

from .test_expert_kernels import unstacked

ON_EACH = pytest.mark.usefixtures("instruction_set")
NAMES = ("gate", "up", "down")
QUANTIZED = ("int8", "int4", "int8-groups", "fp8")
BLOCKS = "fp8-blocks"
KINDS = st.sampled_from(["float32", "bfloat16", *QUANTIZED, BLOCKS])
SIZES = st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
"""Experts, panels or blocks of D, and of F."""
ALLOWED = {
    "float32": 1e-5,
    "bfloat16": 1e-5,
    "int8": 0.02,
    "int4": 0.01,
    "int8-groups": 0.01,
    "fp8": 1e-5,
    BLOCKS: 1e-5,
}
"""Of the largest output. Weights of bf16 and fp8 are exact in f32; in int8 a hidden value on an edge may
round to the other side, by a 127th of the largest in its row, or in its group."""


@cache
def drawn(kind: str, count: int, width: int, inner: int) -> tuple[ExpertWeights, ExpertWeights]:
    """The same experts in panels and as they are stored; bf16 in panels is f32 there."""
    rng = np.random.default_rng([count, width, inner])
    sizes = ((width, inner), (width, inner), (inner, width))
    weights = [rng.standard_normal((count, *size), np.float32) * size[0] ** -0.5 for size in sizes]
    if kind == "bfloat16":
        weights = [w.astype(jnp.bfloat16) for w in weights]
    return _packed_and_stored(weights, kind)


@partial(jax.jit, static_argnums=1)
def _packed_and_stored(weights: list[jax.Array], kind: str) -> tuple[ExpertWeights, ExpertWeights]:
    """One program for each drawn size, since compiling many small ones takes most of the time."""
    quantization, stored, packed = kind if kind in (*QUANTIZED, BLOCKS) else None, {}, {}
    for name, w in zip(NAMES, weights, strict=True):
        parts = quantize_linear(name, w, quantization) if quantization else {name: w}
        for part, values in parts.items():
            stored[part] = values.astype(jnp.float32) if kind == "bfloat16" else values
            form = form_of(f"layers.0.feed_forward.{part}", values.ndim, quantization)
            packed[part] = form.pack(values) if form else values
    return ExpertWeights(**packed), ExpertWeights(**stored)


def inputs(tokens: int, choices: int, count: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their experts (a fifth are none, and some tokens choose one twice) and their weights."""
    rng = np.random.default_rng([tokens, choices, count, width])
    expert_TX = rng.integers(0, count, (tokens, choices), np.int32)
    expert_TX[rng.random((tokens, choices)) < 0.2] = count
    return (
        rng.standard_normal((tokens, width), np.float32),
        expert_TX,
        rng.random((tokens, choices), np.float32),
    )


def one(i: int, *arrays: jax.Array) -> list[jax.Array]:
    """The i-th token alone."""
    return [lax.dynamic_slice_in_dim(array, i, 1) for array in arrays]


@jax.jit
def whole_and_alone(i: jax.Array, *step: jax.Array, experts: ExpertWeights) -> tuple[jax.Array, jax.Array]:
    return native_experts(*step, experts), native_experts(*one(i, *step), experts)


@settings(max_examples=15, deadline=None)
@given(KINDS, st.integers(1, 300), st.integers(1, 3), SIZES, st.data())
def test_experts_are_those_of_the_portable_backend(
    on_each_instruction_set, kind, tokens, choices, sizes, data
):
    """And a token alone has the bits that it has among others."""
    count, together = sizes[0], 128 if kind == BLOCKS else 32
    width, inner = together * sizes[1], together * sizes[2]
    packed, stored = drawn(kind, count, width, inner)
    step, i = inputs(tokens, choices, count, width), data.draw(st.integers(0, tokens - 1))
    portable = jax.jit(block_experts, compiler_options={"xla_backend_optimization_level": 0})
    expected_TD = np.asarray(portable(*step, stored if stored.grouped else unstacked(stored)))

    def check():
        found_TD, alone_1D = whole_and_alone(i, *step, experts=packed)
        most = max(1e-3, np.abs(expected_TD).max())
        np.testing.assert_allclose(found_TD, expected_TD, atol=ALLOWED[kind] * most)
        np.testing.assert_array_equal(alone_1D, np.asarray(found_TD)[i : i + 1])

    on_each_instruction_set(check)


@ON_EACH
@pytest.mark.parametrize("kind", ["float32", *QUANTIZED])
def test_other_tokens_and_their_number_change_no_bit(kind):
    """Every token of a step alone, in halves, in another order, and with all others at one expert."""
    packed, _ = drawn(kind, 4, 320, 64)
    x_TD, expert_TX, weight_TX = inputs(41, 2, 4, 320)
    run = jax.jit(lambda *step: native_experts(*step, packed))
    whole_TD = np.asarray(run(x_TD, expert_TX, weight_TX))
    for i in range(41):
        crowd_TX = np.full_like(expert_TX, 1)
        crowd_TX[i] = expert_TX[i]
        np.testing.assert_array_equal(run(x_TD, crowd_TX, weight_TX)[i], whole_TD[i])
        np.testing.assert_array_equal(
            run(*(a[i : i + 1] for a in (x_TD, expert_TX, weight_TX))), whole_TD[[i]]
        )
    turned = np.random.default_rng(0).permutation(41)
    np.testing.assert_array_equal(run(x_TD[turned], expert_TX[turned], weight_TX[turned]), whole_TD[turned])
    for cut in (7, 20):
        halves = run(x_TD[:cut], expert_TX[:cut], weight_TX[:cut])
        np.testing.assert_array_equal(halves, whole_TD[:cut])


@ON_EACH
@pytest.mark.parametrize("kind", ["float32", "bfloat16", *QUANTIZED])
@pytest.mark.parametrize("nobody", [4, 5, -1, 2**31 - 1, -(2**31)])
def test_rows_without_an_expert_are_zero_and_reach_nobody(kind, nobody):
    """Also if they hold NaN, and whatever index that is no expert's they have."""
    packed, _ = drawn(kind, 4, 64, 96)
    x_TD, expert_TX, weight_TX = inputs(30, 2, 4, 64)
    expert_TX[::3] = 4
    expected_TD = native_experts(x_TD, expert_TX, weight_TX, packed)
    x_TD[::3], weight_TX[::3] = np.nan, np.nan
    found_TD = native_experts(x_TD, np.where(expert_TX == 4, np.int32(nobody), expert_TX), weight_TX, packed)
    np.testing.assert_array_equal(found_TD, expected_TD)
    assert not np.asarray(found_TD)[::3].any() and np.asarray(found_TD).any()


@ON_EACH
def test_extreme_gates():
    """silu of large gates is the gate, or zero; NaN and infinity stay with their own token."""
    packed, stored = drawn("float32", 2, 32, 32)
    x_TD = inputs(6, 1, 2, 32)[0] * np.float32([[1e-30], [1], [1e3], [1e6], [1], [1]])
    x_TD[4, 3], x_TD[5, 7] = np.nan, np.inf
    step = x_TD, np.zeros((6, 1), np.int32), np.ones((6, 1), np.float32)
    found_TD = np.asarray(native_experts(*step, packed))
    expected_TD = np.asarray(block_experts(*step, stored))
    for found_D, expected_D in zip(found_TD[:4], expected_TD[:4], strict=True):
        np.testing.assert_allclose(found_D, expected_D, rtol=1e-4, atol=1e-5 * np.abs(expected_D).max())
    assert np.isnan(found_TD[4:]).any(1).all()


def test_bfloat16_comes_back():
    packed, stored = drawn("bfloat16", 4, 64, 96)
    x_TD, *rest = inputs(7, 2, 4, 64)
    x_TD = jnp.asarray(x_TD, jnp.bfloat16)
    found_TD = native_experts(x_TD, *rest, packed)
    assert found_TD.dtype == jnp.bfloat16
    expected_TD = block_experts(x_TD.astype(jnp.float32), *rest, stored)
    np.testing.assert_allclose(found_TD.astype(jnp.float32), expected_TD, atol=0.02)


@pytest.mark.parametrize("kind", ["float32", *QUANTIZED])
def test_experts_that_are_no_panels_are_computed_by_the_portable_backend(kind):
    _, stored = drawn(kind, 4, 64, 96)
    step = inputs(7, 2, 4, 64)
    for experts in (stored,) if stored.grouped else (stored, unstacked(stored)):
        expected_TD = jax.jit(block_experts)(*step, experts)
        np.testing.assert_array_equal(jax.jit(native_experts)(*step, experts), expected_TD)


WRONG = {
    "gate": ((2, 1, 31, 32), jnp.float32),
    "up": ((2, 2, 32, 32), jnp.float32),
    "down": ((1, 1, 32, 32), jnp.float32),
    "gate_scale": ((2, 32), jnp.float32),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_panels_are_refused_when_traced(name):
    """x has 32 channels, and there are two experts."""
    right = {each: jnp.ones((2, 1, 32, 32)) for each in NAMES}
    experts = ExpertWeights(**right | {name: jnp.ones(*WRONG[name])})
    step = jnp.ones((3, 32)), jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1))
    with pytest.raises(ValueError, match=r"experts .*; expected panels 32 to 32"):
        jax.eval_shape(native_experts, *step, experts)


WEIGHTS4, WEIGHTS8, HALVES = (2, 1, 1, 4, 32, 4), (2, 1, 1, 8, 32, 4), (2, 1, 1, 32)
GROUPS = {f"{name}_{part}": (HALVES, jnp.float16) for part in ("scale", "low") for name in NAMES}
GROUPS |= {name: (WEIGHTS4, jnp.uint8) for name in NAMES}
WRONG_GROUPS = {
    "inputs": {"up": ((2, 1, 2, 4, 32, 4), jnp.uint8)},
    "experts": {"down": ((1, 1, 1, 4, 32, 4), jnp.uint8), "down_scale": ((1, 1, 1, 32), jnp.float16)},
    "nibbles without low": {"gate_low": None},
    "bytes with low": {"gate": (WEIGHTS8, jnp.uint8)},
    "scale": {"up_scale": ((2, 1, 32), jnp.float16)},
    "type of scale": {"down_scale": (HALVES, jnp.float32)},
    "not stacked": {"up": ((1, 1, 4, 32, 4), jnp.uint8)},
}


@pytest.mark.parametrize("changes", WRONG_GROUPS.values(), ids=WRONG_GROUPS)
def test_wrong_panels_of_groups_are_refused_when_traced(changes):
    """x has 32 channels, and there are two experts; gate, up and down may have 4 or 8 bits each."""
    step = jnp.ones((3, 32)), jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1))
    mixed = GROUPS | {"up": (WEIGHTS8, jnp.uint8), "up_low": None}
    for right in (GROUPS, mixed):
        jax.eval_shape(native_experts, *step, experts_of(right))
    with pytest.raises(ValueError, match=r"experts .*; expected panels 32 to 32"):
        jax.eval_shape(native_experts, *step, experts_of(GROUPS | changes))


def experts_of(arrays):
    return ExpertWeights(**{name: each and jnp.ones(*each) for name, each in arrays.items()})


@ON_EACH
def test_four_and_eight_bits_go_together():
    """Each of the three weights has lows of its own, or none."""
    (four, stored4), (eight, stored8) = (drawn(kind, 4, 64, 96) for kind in ("int4", "int8-groups"))
    for name in NAMES:
        other = {f"{name}{part}": getattr(eight, f"{name}{part}") for part in ("", "_scale", "_low")}
        other_stored = {f"{name}{part}": getattr(stored8, f"{name}{part}") for part in ("", "_scale", "_low")}
        step = inputs(9, 2, 4, 64)
        found_TD = native_experts(*step, replace(four, **other))
        expected_TD = block_experts(*step, replace(stored4, **other_stored))
        np.testing.assert_allclose(found_TD, expected_TD, atol=0.01 * np.abs(expected_TD).max())


FLOATS = [((2, 1, 32, 32), jnp.float32)] * 3
NIBBLES, BYTES = (WEIGHTS4, jnp.uint8), (WEIGHTS8, jnp.uint8)
SCALES = [(HALVES, jnp.float16)] * 3
REFUSED = {
    "inputs": [((2, 1, 64, 32), jnp.float32), *FLOATS[1:]],
    "experts": [*FLOATS[1:], ((1, 1, 32, 32), jnp.float32)],
    "outputs": [FLOATS[0], ((2, 2, 32, 32), jnp.float32), FLOATS[0]],
    "two": FLOATS[1:],
    "scales of f32": [*FLOATS, *[((2, 32), jnp.float32)] * 3],
    "no lows": [NIBBLES] * 3 + SCALES,
    "a low too few": [NIBBLES] * 3 + SCALES + SCALES[1:],
    "lows of bytes": [BYTES] * 3 + SCALES + SCALES[1:],
    "scales of groups": [BYTES] * 3 + [(HALVES[1:], jnp.float16)] * 3,
    "type of scales": [BYTES] * 3 + [(HALVES, jnp.bfloat16)] * 3,
    "sizes of scales": [BYTES] * 3 + [((2, 1, 2, 32), jnp.float16)] * 3,
    "loads": [((2, 1, 1, 5, 32, 4), jnp.uint8)] * 3 + SCALES,
    "groups beside floats": [*[NIBBLES] * 2, FLOATS[0], *SCALES, *SCALES],
    "floats beside groups": [*FLOATS[:2], NIBBLES, *SCALES, *SCALES],
}


@ON_EACH
@pytest.mark.parametrize("operands", REFUSED.values(), ids=REFUSED)
def test_the_call_itself_refuses_wrong_shapes(operands):
    call = jax.ffi.ffi_call("distaff_experts", jax.ShapeDtypeStruct((3, 32), jnp.float32))
    step = jnp.ones((3, 32)), jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1))
    with pytest.raises(jax.errors.JaxRuntimeError, match="experts: expected x and a result"):
        call(*step, *(jnp.ones(*each) for each in operands))


def test_the_call_itself_refuses_choices_of_another_shape():
    call = jax.ffi.ffi_call("distaff_experts", jax.ShapeDtypeStruct((3, 32), jnp.float32))
    panels = [jnp.ones((2, 1, 32, 32))] * 3
    with pytest.raises(jax.errors.JaxRuntimeError, match="experts: expected x and a result"):
        call(jnp.ones((3, 32)), jnp.zeros((3, 2), jnp.int32), jnp.ones((3, 1)), *panels)
