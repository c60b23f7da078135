"""Portable products with weights in groups: of one tile or many, rounded rows or not, of stacks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from distaff.model.kernels import grouped, tiles
from distaff.model.quantize import GroupedWeight, quantize_groups_of_activations

from .test_triton_grouped import drawn, limits, rows_of, widened

SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 8), st.integers(1, 700))
"""Rows, groups of inputs, outputs."""
EXAMPLES = settings(max_examples=10, deadline=None, phases=[Phase.generate])  # each compiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 outputs, or 256 of few inputs."""
    monkeypatch.setattr(tiles, "TILE", 1 << 15)


def rounded_rows(x_TD: jax.Array) -> np.ndarray:
    q_TD, scale_TG = quantize_groups_of_activations(x_TD)
    return np.asarray(q_TD, np.float64) * np.repeat(np.asarray(scale_TG, np.float64), 32, axis=1)


@pytest.mark.parametrize("bits", [4, 8])
@EXAMPLES
@given(SHAPES, st.sampled_from(["float32", "bfloat16"]))
def test_rows_that_are_not_rounded(bits, shape, dtype):
    """The product with the weight, to within a rounding of it to the rows' type."""
    rows, groups, outputs = shape
    x_TD, weight = rows_of(rows, groups, dtype), drawn(groups, outputs, bits)
    found_TF = jax.jit(lambda *each: grouped.unrounded(*each))(x_TD, weight)
    assert found_TF.dtype == jnp.float32 and found_TF.shape == (rows, outputs)
    expected_TF = np.asarray(x_TD, np.float64) @ widened(weight)
    np.testing.assert_array_less(np.abs(found_TF - expected_TF), limits(x_TD, weight))


@pytest.mark.parametrize("bits", [4, 8])
@EXAMPLES
@given(SHAPES)
def test_rounded_rows(bits, shape):
    rows, groups, outputs = shape
    x_TD, weight = rows_of(rows, groups), drawn(groups, outputs, bits)
    found_TF = jax.jit(lambda *each: grouped.rounded(*each))(x_TD, weight)
    expected_TF = rounded_rows(x_TD) @ widened(weight)
    np.testing.assert_array_less(np.abs(found_TF - expected_TF), limits(x_TD, weight))


@pytest.mark.parametrize("outputs", [90, 600])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("product", [grouped.rounded, grouped.unrounded])
def test_one_of_a_stack(product, bits, outputs):
    """The same bits as its own product, with a number that is known only when it runs."""
    x_TD, weights = rows_of(5, 4), [drawn(4, outputs, bits), drawn(4, outputs + 1, bits)]
    weights[1] = jax.tree.map(lambda part: part[:, :-1], weights[1])
    stack: GroupedWeight = jax.tree.map(lambda *parts: jnp.stack(parts), *weights)
    for e, weight in enumerate(weights):
        found_TF, expected_TF = jax.jit(product)(x_TD, stack, e), jax.jit(product)(x_TD, weight)
        np.testing.assert_array_equal(found_TF, expected_TF)


@pytest.mark.parametrize("product", [grouped.rounded, grouped.unrounded])
def test_only_tiles_are_widened(product):
    """The compiled program holds no array of floating-point numbers with all outputs but the result, the
    scales and the lows."""
    x_TD, weight = rows_of(5, 4), drawn(4, 650, 4)
    compiled = jax.jit(lambda *each: product(*each)).lower(x_TD, weight).compile()
    found = set(re.findall(r"\b(f16|bf16|f32)\[([\d,]*650)\]", compiled.as_text()))
    assert found <= {("f32", "5,650"), ("f16", "4,650")}
    assert compiled.memory_analysis().temp_size_in_bytes < 128 * 650 * 4


@given(st.integers(1, 2000), st.integers(1, 200_000))
def test_tiles_are_of_sensible_size(groups, outputs):
    """At most TILE weights, unless the fewest outputs have more; whole registers, or all outputs."""
    size = tiles.tile_of(32 * groups, outputs)
    assert 1 <= size <= outputs
    assert size == outputs or size % 128 == 0
    assert size <= 128 or 32 * groups * size <= tiles.TILE
