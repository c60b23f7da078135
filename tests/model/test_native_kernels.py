"""Native kernels against numpy and the portable backends, for every instruction set of this CPU.

The law of all of them: a row's bits depend on the row alone, not on the rows beside it.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.kernels import linear as portable
from distaff.model.kernels import rows as plain_rows
from distaff.model.kernels.cpu.native_attention import attend, fits
from distaff.model.kernels.cpu.native_linear import int8_linear, linear
from distaff.model.kernels.cpu.native_rows import rms_norm, row_sum
from distaff.model.kernels.panels import pack, pack_int8, unpack_rows
from distaff.model.quantize import quantize_weight

from .test_attention_kernels import BFLOAT16, FLOAT32, MIXED, STEPS, compare, lay_out
from .test_block_attention import Geometry, World

ON_EACH = pytest.mark.usefixtures("instruction_set")

SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 600), st.integers(1, 5))
"""Rows, inputs, panels."""
ATTENTION = {
    "gqa": Geometry(heads=4, kv_heads=2, head_size=32),
    "three-heads-window-5": Geometry(heads=3, kv_heads=1, head_size=64, page_size=8, window=5),
    "page-256-window-200": Geometry(heads=2, kv_heads=2, head_size=128, page_size=256, window=200),
    "head-256": Geometry(heads=2, kv_heads=1, head_size=256),
    "page-1-window-200": Geometry(heads=2, kv_heads=1, head_size=32, page_size=1, window=200),
    "int8": Geometry(heads=6, kv_heads=2, head_size=64, int8=True),
    "head-16, which is portable": Geometry(heads=4, kv_heads=2, head_size=16),
}


def drawn(rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """x and w, f32 in numpy, whose slices compile nothing."""
    rng = np.random.default_rng([rows, inputs, outputs])
    x_TD, w_DF = (rng.standard_normal(shape, np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    return x_TD, w_DF


def exact(x_TD: np.ndarray, w_DF: np.ndarray) -> np.ndarray:
    return np.asarray(x_TD, np.float64) @ np.asarray(w_DF, np.float64)


@jax.jit
def packed_linear(x_TD: jax.Array, w_DF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product, and that of the last row alone: one program for each shape."""
    w = pack(w_DF)
    return linear(x_TD, w)[0], linear(x_TD[-1:], w)[0]


@settings(max_examples=12, deadline=None)
@given(SHAPES, st.sampled_from(["float32", "bfloat16"]))
def test_linear_is_the_product(on_each_instruction_set, shape, dtype):
    rows, inputs, panels = shape
    x_TD, w_DF = drawn(rows, inputs, 32 * panels)
    w_DF = w_DF.astype(jnp.dtype(dtype))

    def check():
        found_TF, alone_TF = packed_linear(x_TD, w_DF)
        np.testing.assert_allclose(found_TF, exact(x_TD, w_DF), atol=2e-6 * inputs)
        np.testing.assert_array_equal(alone_TF, found_TF[-1:])

    on_each_instruction_set(check)


def test_every_number_of_rows_has_the_bits_of_the_same_rows_among_others():
    """Other numbers of rows are divided into other blocks. 300 inputs are computed in two parts."""
    x_TD, w_DF = drawn(40, 300, 64)
    q_DF, scale_F = quantize_weight(w_DF)
    weight = pack_int8(q_DF), scale_F
    (wide_TF,), (rounded_TF,) = linear(x_TD, pack(w_DF)), int8_linear(x_TD, weight)
    for rows in range(1, 27):
        np.testing.assert_array_equal(linear(x_TD[:rows], pack(w_DF))[0], wide_TF[:rows])
        np.testing.assert_array_equal(int8_linear(x_TD[:rows], weight)[0], rounded_TF[:rows])


@pytest.mark.parametrize("used", [-1, 0, 1, 7, 40, 41])
def test_rows_that_are_padding_are_zero_and_change_no_other(used):
    x_TD, w_DF = drawn(40, 64, 64)
    weight = pack_int8(quantize_weight(w_DF)[0]), quantize_weight(w_DF)[1]
    padded_TD = jnp.asarray(x_TD).at[max(used, 0) :].set(jnp.nan)
    count = jnp.int32(used)
    pairs = [
        *zip(
            linear(padded_TD, pack(w_DF), pack(w_DF), rows=count),
            linear(x_TD, *[pack(w_DF)] * 2),
            strict=True,
        ),
        *zip(int8_linear(padded_TD, weight, rows=count), int8_linear(x_TD, weight), strict=True),
    ]
    for found_TF, whole_TF in pairs:
        live_T1 = np.arange(40)[:, None] < used
        np.testing.assert_array_equal(found_TF, np.where(live_T1, whole_TF, 0))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=9))
def test_rows_of_an_embedding_in_panels_are_its_rows(rows):
    """Beyond the last one they are zero."""
    embed_VD = drawn(160, 5, 1)[0]
    expected_TD = np.pad(embed_VD, ((0, 41), (0, 0)))[rows]
    np.testing.assert_array_equal(jax.jit(unpack_rows)(pack(embed_VD.T), np.asarray(rows)), expected_TD)


@jax.jit
def packed_int8_linear(x_TD: jax.Array, w_DF: jax.Array, scale_F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `packed_linear`."""
    weight = pack_int8(w_DF), scale_F
    return int8_linear(x_TD, weight)[0], int8_linear(x_TD[-1:], weight)[0]


@settings(max_examples=12, deadline=None)
@given(SHAPES)
def test_int8_linear_is_an_integer_product_to_the_bit(on_each_instruction_set, shape):
    """Rows and columns with a largest magnitude of 127 times a power of two have exact scales."""
    rows, inputs, panels = shape
    rng = np.random.default_rng(shape)
    x_TD, w_DF = rng.integers(-127, 128, (rows, inputs)), rng.integers(-127, 128, (inputs, 32 * panels))
    x_TD[:, 0] = 127
    powers_T, powers_F = 2.0 ** rng.integers(-3, 4, rows), 2.0 ** rng.integers(-3, 4, 32 * panels)
    scaled_TD = (x_TD * powers_T[:, None]).astype(np.float32)
    expected_TF = ((x_TD @ w_DF) * powers_T[:, None] * powers_F).astype(np.float32)

    def check():
        found_TF, alone_TF = packed_int8_linear(scaled_TD, w_DF.astype(np.int8), powers_F.astype(np.float32))
        np.testing.assert_array_equal(found_TF, expected_TF)
        np.testing.assert_array_equal(alone_TF, found_TF[-1:])

    on_each_instruction_set(check)


@ON_EACH
def test_largest_bytes_do_not_saturate():
    """Sums of products of the largest bytes, of either sign."""
    x_TD = jnp.asarray(np.tile([[1.0, 1, -1, -1]], (3, 256)), jnp.float32)
    w_DF = jnp.asarray(np.tile([[127], [127], [-127], [-127]], (256, 32)), jnp.int8)
    (found_TF,) = int8_linear(x_TD, (pack_int8(w_DF), jnp.ones(32)))
    np.testing.assert_allclose(found_TF, 127 * 1024, rtol=1e-6)


@jax.jit
def summed_and_normed(x_TD: jax.Array, scale_D: jax.Array) -> tuple[jax.Array, ...]:
    """Sums and norms, and the norms of the portable backend."""
    return row_sum(x_TD), rms_norm(x_TD, scale_D, 1e-5), plain_rows.rms_norm(x_TD, scale_D, 1e-5)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 300), st.integers(1, 600))
def test_sums_and_norms_of_rows(on_each_instruction_set, rows, columns):
    """A row alone has the bits that it has among others."""
    x_TD, scale_D = drawn(rows, columns, 1)[0], drawn(1, columns, 1)[0][0]

    def check():
        sums_T, normed_TD, portable_TD = summed_and_normed(x_TD, scale_D)
        np.testing.assert_allclose(sums_T, np.asarray(x_TD, np.float64).sum(1), atol=1e-4)
        np.testing.assert_allclose(normed_TD, portable_TD, rtol=1e-5, atol=1e-6)
        sum_1, normed_1D, _ = summed_and_normed(x_TD[-1:], scale_D)
        np.testing.assert_array_equal(sum_1, np.asarray(sums_T)[-1:])
        np.testing.assert_array_equal(normed_1D, np.asarray(normed_TD)[-1:])

    on_each_instruction_set(check)


def test_a_norm_of_another_type_is_the_portable_one():
    x_TD, scale_D = jnp.ones((3, 8), jnp.bfloat16), jnp.full(8, 2, jnp.bfloat16)
    assert rms_norm(x_TD, scale_D, 0.0).dtype == jnp.bfloat16


def test_a_norm_of_another_width_is_refused_when_traced():
    with pytest.raises(ValueError, match=r"scale \[7\] for x \[3, 8\]; expected one for each channel"):
        jax.eval_shape(lambda x, s: rms_norm(x, s, 0.0), jnp.ones((3, 8)), jnp.ones(7))


@ON_EACH
def test_one_call_computes_several_weights():
    x_TD, w_DF = drawn(7, 50, 96)
    parts = w_DF[:, :32], w_DF[:, 32:]
    for found, part in zip(linear(x_TD, *map(pack, parts)), parts, strict=True):
        np.testing.assert_array_equal(found, linear(x_TD, pack(part))[0])
    quantized = [(pack_int8(w), scale) for w, scale in map(quantize_weight, parts)]
    for found, weight in zip(int8_linear(x_TD, *quantized), quantized, strict=True):
        np.testing.assert_array_equal(found, int8_linear(x_TD, weight)[0])


@ON_EACH
def test_weights_that_are_no_panels_are_computed_by_the_portable_backend():
    x_TD, w_DF = drawn(3, 20, 33)
    np.testing.assert_array_equal(linear(x_TD, w_DF)[0], portable.split_k(x_TD, w_DF)[0])
    weight = quantize_weight(w_DF)
    np.testing.assert_array_equal(int8_linear(x_TD, weight)[0], portable.int8_padded(x_TD, weight)[0])


@pytest.mark.parametrize(
    "panels", [jnp.ones((1, 8, 32)), jnp.ones((1, 7, 31)), jnp.ones((1, 7, 32), jnp.int8)]
)
def test_wrong_panels_are_refused_when_traced(panels):
    """x has 7 inputs."""
    with pytest.raises(ValueError, match=r"expected panels of its width"):
        jax.eval_shape(linear, jnp.ones((2, 7)), panels)


@pytest.mark.parametrize("shape", [(1, 2, 31, 4), (1, 3, 32, 4), (2, 2, 32, 4)])
def test_wrong_bytes_are_refused_when_traced(shape):
    """x has 7 inputs, which are two quads, and there are 32 scales."""
    with pytest.raises(ValueError, match=r"expected panels of its width"):
        jax.eval_shape(int8_linear, jnp.ones((2, 7)), (jnp.ones(shape, jnp.uint8), jnp.ones(32)))


@ON_EACH
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("geometry", ATTENTION.values(), ids=ATTENTION)
def test_attention_equals_dense_attention(geometry, step, dtype):
    """In bfloat16 the result is rounded, and the portable backend also rounds weights."""
    compare(attend, geometry, step, dtype, 1e-5 if dtype == FLOAT32 else 0.02)


@ON_EACH
@pytest.mark.parametrize("geometry", [g for g in ATTENTION.values() if g.head_size > 16], ids=str)
def test_a_token_attends_alone_as_it_does_in_a_prompt(geometry):
    """Bit for bit: whether it is decoded, or computed with others of its prompt, in any split."""
    world = World.create(geometry, 3)
    shape = (80, geometry.heads, geometry.head_size)
    q_TNH = jnp.asarray(np.random.default_rng(4).standard_normal(shape), jnp.float32)
    assert fits(q_TNH, world.pool)
    run = jax.jit(lambda q, batch: attend(q, world.pool, batch, window=geometry.window))
    whole = np.asarray(run(q_TNH, lay_out(world, MIXED, 80, tiles=True)))
    at = 0
    for row, (first, length) in enumerate(MIXED):
        for i in {0, length // 2, length - 1}:
            batch = lay_out(world, [(first + i, 1)], 4, tiles=False)
            batch = replace(batch, tables_BM=batch.tables_BM.at[0].set(batch.tables_BM[row]))
            alone = run(jnp.zeros((4, *shape[1:])).at[0].set(q_TNH[at + i]), batch)
            np.testing.assert_array_equal(np.asarray(alone)[0], whole[at + i])
        at += length


@ON_EACH
def test_entries_after_the_last_position_reach_nobody():
    """Pages are shared with nobody, but a page's rest may hold anything, here NaN."""
    geometry = ATTENTION["gqa"]
    world = World.create(geometry, 3, filler=float("nan"))
    q_TNH = jnp.ones((4, geometry.heads, geometry.head_size))
    found = attend(q_TNH, world.pool, lay_out(world, [(20, 1), (0, 3)], 4, tiles=True), window=None)
    assert np.isfinite(found).all()
