"""Portable products with fp8 weights and those for TPUs: of one tile or many, of stacks, and of experts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from distaff.model.kernels import fp8, tiles
from distaff.model.kernels.block_experts import block_experts
from distaff.model.kernels.tpu.ragged_experts import ragged_experts

from .fp8_experts import FP8, oracle
from .fp8_experts import drawn as drawn_experts
from .test_fp8_kernels import drawn, exact, rows_of
from .test_grouped_experts import COUNT, inputs

BOTH = pytest.mark.parametrize("blocks", [False, True], ids=["outputs", "blocks"])
SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 700))
"""Rows, blocks of inputs, outputs."""
EXAMPLES = settings(max_examples=10, deadline=None, phases=[Phase.generate])  # each compiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 outputs, or 256 of few inputs."""
    monkeypatch.setattr(tiles, "TILE", 1 << 15)


@pytest.mark.parametrize("product", [fp8.fp8_plain, fp8.fp8_whole])
@BOTH
@EXAMPLES
@given(SHAPES, st.sampled_from(["float32", "bfloat16"]))
def test_it_is_the_product_with_the_weight(product, blocks, shape, dtype):
    """To within a rounding of it to the rows' type, if it is in blocks."""
    rows, count, outputs = shape
    x_TD = jnp.asarray(rows_of(rows, 128 * count), dtype)
    weight = drawn(128 * count, outputs, blocks=blocks)
    (found_TF,) = jax.jit(lambda *each: product(*each))(x_TD, weight)
    expected_TF, magnitude_TF = exact(np.asarray(x_TD).astype(np.float64), weight)
    relative = 2e-6 + blocks * 0.5 * float(jnp.finfo(dtype).eps)
    assert found_TF.dtype == jnp.float32 and found_TF.shape == (rows, outputs)
    np.testing.assert_array_less(np.abs(found_TF - expected_TF), relative * magnitude_TF + 1e-30)


@pytest.mark.parametrize("outputs", [90, 600])
@BOTH
def test_one_of_a_stack(blocks, outputs):
    """The same bits as its own product, with a number that is known only when it runs."""
    x_TD = jnp.asarray(rows_of(5, 256))
    weights = [drawn(256, outputs, blocks=blocks), drawn(256, outputs + 1, blocks=blocks)]
    weights[1] = jax.tree.map(lambda part: part[..., :-1], weights[1])
    stack = jax.tree.map(lambda *parts: jnp.stack(parts), *weights)
    for e, weight in enumerate(weights):
        found_TF, expected_TF = (jax.jit(fp8.fp8_product)(x_TD, *each) for each in ((stack, e), (weight,)))
        np.testing.assert_array_equal(found_TF, expected_TF)


@BOTH
def test_only_tiles_are_widened(blocks):
    """The compiled program holds no wide array with all outputs but the result and the scales."""
    x_TD, weight = jnp.asarray(rows_of(5, 256)), drawn(256, 650, blocks=blocks)
    compiled = jax.jit(lambda *each: fp8.fp8_plain(*each)).lower(x_TD, weight).compile()
    found = set(re.findall(r"\b(?:f16|bf16|f32)\[([\d,]*650)\]", compiled.as_text()))
    assert found <= {"5,650", "2,650", "650"}
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 650 * 4


@pytest.mark.parametrize("kernel", [block_experts, ragged_experts])
@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(st.sampled_from(FP8), st.integers(1, 100), st.integers(1, 3), st.integers(1, 4))
def test_experts_are_the_sum_over_experts(kernel, kind, tokens, choices, count):
    step, experts = inputs(tokens, choices, count, 256), drawn_experts(kind, count, 256, 384)
    found_TD, expected_TD = jax.jit(lambda *each: kernel(*each))(*step, experts), oracle(step, experts)
    np.testing.assert_allclose(found_TD, expected_TD, atol=1e-5 * max(1, np.abs(expected_TD).max()))


@pytest.mark.parametrize("kind", FP8)
def test_one_tile_of_one_expert_is_widened_at_a_time(kind):
    """Of 128 outputs; the program holds no wide weight, and no copy of one expert's."""
    step, experts = inputs(30, width=256), drawn_experts(kind, COUNT, 256, 384)
    text = jax.jit(lambda *each: block_experts(*each)).lower(*step, experts).compile().as_text()
    assert re.search(r"f32\[(1,)?(256,128|384,128|[23],128,128)\]", text)
    assert not re.search(r"f32\[(\d,)?(256,384|384,256|2,128,384|3,128,256)\]", text)
    assert not re.search(r"(u8|f8e4m3fn)\[(1,)?(256,384|384,256)\]", text)
