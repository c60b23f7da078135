"""Weights in groups of 32 inputs: rounding, panels, GGUF's blocks, and the portable product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.gguf.gguf_groups import KINDS, groups_of
from distaff.model.kernels.linear import grouped_plain
from distaff.model.kernels.panels import pack_bytes, pack_nibbles, pack_scales, unpack_grouped_rows
from distaff.model.quantize import (
    GROUP,
    GroupedWeight,
    dequantize_groups,
    quantize_groups4,
    quantize_groups8,
    quantize_groups_of_activations,
)

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4))
"""Groups of inputs, panels of outputs."""


@jax.jit
def pack_grouped(w: jax.Array, scale: jax.Array, low: jax.Array | None) -> GroupedWeight:
    """A weight in groups as panels."""
    if low is None:
        return pack_bytes(w), pack_scales(scale), None
    return pack_nibbles(w), pack_scales(scale), pack_scales(low)


def drawn(groups: int, panels: int, bits: int) -> GroupedWeight:
    """Any bytes, and scales of either sign."""
    rng = np.random.default_rng([groups, panels, bits])
    inputs, outputs = 32 * groups, 32 * panels
    scale, low = (jnp.asarray(rng.standard_normal((groups, outputs)), jnp.float16) for _ in range(2))
    if bits == 4:
        return jnp.asarray(rng.integers(0, 256, (inputs // 2, outputs)), jnp.uint8), scale, low
    return jnp.asarray(rng.integers(-128, 128, (inputs, outputs)), jnp.int8), scale, None


def unpacked(w: np.ndarray, scale: np.ndarray, low: np.ndarray | None) -> np.ndarray:
    """The weight, f32 `[D, F]`, of panels, read byte by byte as `panels.py` describes them."""
    panels, groups, loads = w.shape[:3]
    values = np.zeros((32 * groups, 32 * panels), np.float32)
    for panel, group, p, output, i in np.ndindex(w.shape):
        byte, at, to = int(w[panel, group, p, output, i]), 32 * group + 4 * p + i, 32 * panel + output
        factor = np.float32(scale[panel, group, output])
        if low is None:
            values[at, to] = factor * (byte - 128)
        else:
            values[at, to] = factor * (byte & 15) + np.float32(low[panel, group, output])
            values[at + 16, to] = factor * (byte >> 4) + np.float32(low[panel, group, output])
    assert loads == (8 if low is None else 4)
    return values


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=5, deadline=None)
@given(SHAPES)
def test_panels_have_the_weights_values(bits, shape):
    groups, panels = shape
    weight = drawn(groups, panels, bits)
    w, scale, low = pack_grouped(*weight)
    values_DF = unpacked(np.asarray(w), np.asarray(scale), None if low is None else np.asarray(low))
    np.testing.assert_array_equal(values_DF, dequantize_groups(*weight))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None)
def test_rows_of_an_embedding_in_groups_are_its_rows(rows):
    """In panels and in the portable form; beyond the last one they are zero."""
    w, scale, _ = drawn(3, 5, 8)
    packed = pack_grouped(w, scale, None)
    row_T = jnp.asarray(rows)
    expected_TD = dequantize_groups(w, scale, None).T.at[row_T].get(mode="fill", fill_value=0)
    for stored, scales in ((w, scale), packed[:2]):
        np.testing.assert_array_equal(unpack_grouped_rows(stored, scales, row_T), expected_TD)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_gguf_keep_their_values(kind, seed):
    """To the bit; weights are drawn in sizes from that of f16's smallest numbers on."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-7, 3, (96, 5, 1))
    w_FD = (rng.standard_normal((96, 5, GROUP)) * sizes).astype(np.float32).reshape(96, -1)
    raw = gguf_quantize(w_FD, kind)
    w, scale, low = canonical(raw, kind)
    wide = None if low is None else jnp.asarray(low)
    found = dequantize_groups(jnp.asarray(w), jnp.asarray(scale), wide)
    np.testing.assert_array_equal(found, dequantize(raw, kind).T)


def canonical(raw: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    w, scale, low = groups_of(raw.reshape(96, 5, -1), kind)
    assert (w.dtype, w.shape) == ((np.int8, (160, 96)) if low is None else (np.uint8, (80, 96)))
    assert scale.dtype == np.float16 and scale.shape == (5, 96)
    return w, scale, low


def test_a_scale_without_a_low_in_f16_is_refused():
    raw = np.concatenate([np.full(1, 9000, "<f2").view(np.uint8), np.zeros(16, np.uint8)])
    with pytest.raises(CheckpointError, match="scales reach 9000"):
        groups_of(raw.reshape(1, 1, 18), Kind.Q4_0)


@settings(max_examples=12, deadline=None)
@given(SHAPES, st.floats(-3, 3), st.floats(1e-4, 1e3))
def test_four_bits_are_at_least_as_good_as_ggufs(shape, mean, size):
    """By squared error, which is at most that of half a step everywhere."""
    rng = np.random.default_rng(shape)
    w_DF = ((rng.standard_normal((32 * shape[0], 32 * shape[1])) + mean) * size).astype(np.float32)
    w, scale, low = jax.jit(quantize_groups4)(jnp.asarray(w_DF))
    assert (w.dtype, scale.dtype, low.dtype) == (jnp.uint8, jnp.float16, jnp.float16)
    ours = np.square(np.asarray(jax.jit(dequantize_groups)(w, scale, low)) - w_DF).sum()
    raw = gguf_quantize(np.ascontiguousarray(w_DF.T), Kind.Q4_1)
    assert ours <= 1.0001 * np.square(dequantize(raw, Kind.Q4_1).T - w_DF).sum()


@pytest.mark.parametrize("tails", [False, True])
def test_four_bits_lose_less_than_between_the_smallest_and_the_largest(tails):
    """At least a tenth of the squared error of GGUF's own rounding, of normal weights and of longer tails."""
    rng = np.random.default_rng(6)
    w_DF = (rng.standard_t(4, (256, 96)) if tails else rng.standard_normal((256, 96))).astype(np.float32)
    ours = np.square(dequantize_groups(*quantize_groups4(w_DF)) - w_DF).sum()
    raw = gguf_quantize(np.ascontiguousarray(w_DF.T), Kind.Q4_1)
    assert ours < 0.9 * np.square(dequantize(raw, Kind.Q4_1).T - w_DF).sum()


def test_four_bits_are_exact_where_they_can_be():
    """A group with 16 equally spaced values, and one with a single value."""
    w_DF = jnp.stack([jnp.arange(64.0) % 16 * 0.25 - 1, jnp.full(64, 0.5)], axis=1)
    np.testing.assert_array_equal(dequantize_groups(*quantize_groups4(w_DF)), w_DF)


def test_eight_bits_are_within_half_a_step():
    w_DF = jnp.asarray(np.random.default_rng(1).standard_normal((2, 64, 40)), jnp.float32)
    w, scale = quantize_groups8(w_DF)
    for one, one_scale, exact_DF in zip(w, scale, w_DF, strict=True):
        step_DF = np.repeat(np.asarray(one_scale, np.float32), GROUP, axis=0)
        error_DF = np.abs(dequantize_groups(one, one_scale, None) - exact_DF)
        assert np.all(error_DF <= 0.57 * step_DF)  # f16 rounds a scale down by up to 1 in 2048 of 127 steps


@pytest.mark.parametrize("quantize", [quantize_groups4, lambda w: (*quantize_groups8(w), None)])
def test_stacks_are_rounded_one_by_one(quantize):
    """And a group of zeros stays zero."""
    w_EDF = jnp.asarray(np.random.default_rng(2).standard_normal((3, 64, 5)), jnp.float32).at[1, :32].set(0)
    values_EDF = jnp.stack([dequantize_groups(*quantize(w_DF)) for w_DF in w_EDF])
    w, scale, low = quantize(w_EDF)
    for i, values_DF in enumerate(values_EDF):
        stacked = w[i], scale[i], None if low is None else low[i]
        np.testing.assert_array_equal(dequantize_groups(*stacked), values_DF)
    assert not np.any(values_EDF[1, :32]) and np.any(values_EDF[1, 32:])


def test_activations_have_a_scale_for_each_group():
    x_TD = jnp.asarray(np.random.default_rng(3).standard_normal((4, 96)), jnp.float32).at[2, :32].set(0)
    q_TD, scale_TG = quantize_groups_of_activations(x_TD)
    assert q_TD.dtype == jnp.int8 and scale_TG.shape == (4, 3)
    largest_TG = np.abs(x_TD).reshape(4, 3, 32).max(-1)
    np.testing.assert_allclose(scale_TG, np.maximum(largest_TG, 1e-30) / 127, rtol=1e-6)
    np.testing.assert_allclose(q_TD, x_TD / np.repeat(scale_TG, 32, axis=1), atol=0.501)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_portable_product_is_that_of_the_rounded_numbers(bits):
    weight = drawn(3, 2, bits)
    x_TD = jnp.asarray(np.random.default_rng(4).standard_normal((5, 96)), jnp.float32)
    q_TD, scale_TG = (np.asarray(each, np.float64) for each in quantize_groups_of_activations(x_TD))
    (found_TF,) = jax.jit(grouped_plain)(x_TD, weight)
    expected_TF = (q_TD * np.repeat(scale_TG, 32, axis=1)) @ np.asarray(
        dequantize_groups(*weight), np.float64
    )
    np.testing.assert_allclose(found_TF, expected_TF, rtol=1e-4, atol=2e-3)
