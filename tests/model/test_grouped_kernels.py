"""The native product with weights in groups against the portable one, for every instruction set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.kernels.cpu.native_linear import grouped_linear
from distaff.model.kernels.linear import grouped_plain
from distaff.model.quantize import GroupedWeight, dequantize_groups

from .test_grouped_weights import drawn, pack_grouped

ON_EACH = pytest.mark.usefixtures("instruction_set")

SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 30), st.integers(1, 5))
"""Rows, groups of inputs, panels."""


def rows_of(rows: int, groups: int) -> np.ndarray:
    """Groups of a row differ much in size."""
    rng = np.random.default_rng([rows, groups])
    sizes = 10.0 ** rng.integers(-4, 3, (rows, groups, 1))
    return (rng.standard_normal((rows, groups, 32)) * sizes).reshape(rows, -1).astype(np.float32)


@jax.jit
def products(
    x_TD: jax.Array, weight: GroupedWeight
) -> tuple[jax.Array, list[jax.Array], jax.Array, jax.Array]:
    """The native product, those of three rows alone, the portable product, and its magnitudes.

    One program for each shape.
    """
    packed = pack_grouped(*weight)
    alone = [grouped_linear(x_TD[row : row + 1], packed)[0][0] for row in some_rows(len(x_TD))]
    (portable_TF,) = grouped_plain(x_TD, weight)
    return grouped_linear(x_TD, packed)[0], alone, portable_TF, magnitudes(weight)


def some_rows(rows: int) -> list[int]:
    return [0, rows // 2, rows - 1]


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=8, deadline=None)
@given(SHAPES)
def test_it_equals_the_portable_product(on_each_instruction_set, bits, shape):
    """To within f32's rounding of the magnitudes; and a row alone has the bits that it has among others."""
    rows, groups, panels = shape
    x_TD, weight = rows_of(rows, groups), drawn(groups, panels, bits)

    def check():
        found_TF, alone, expected_TF, magnitude_DF = jax.tree.map(np.asarray, products(x_TD, weight))
        limit_TF = 2e-6 * (np.abs(x_TD) @ magnitude_DF) + 1e-30
        np.testing.assert_array_less(np.abs(found_TF - expected_TF), limit_TF)
        for row, found_F in zip(some_rows(rows), alone, strict=True):
            np.testing.assert_array_equal(found_F, found_TF[row])

    on_each_instruction_set(check)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_number_of_rows_has_the_bits_of_the_same_rows_among_others(bits, on_each_instruction_set):
    x_TD, weight = rows_of(40, 5), pack_grouped(*drawn(5, 2, bits))

    def check():
        (whole_TF,) = grouped_linear(x_TD, weight)
        for rows in range(1, 27):
            np.testing.assert_array_equal(grouped_linear(x_TD[:rows], weight)[0], whole_TF[:rows])

    on_each_instruction_set(check)


@pytest.mark.parametrize("used", [0, 3, 40])
def test_rows_that_are_padding_are_zero_and_change_no_other(used):
    x_TD, weight = rows_of(40, 5), pack_grouped(*drawn(5, 2, 4))
    (found_TF,) = grouped_linear(jnp.asarray(x_TD).at[used:].set(jnp.nan), weight, rows=jnp.int32(used))
    np.testing.assert_array_equal(found_TF[:used], grouped_linear(x_TD, weight)[0][:used])
    assert not np.any(found_TF[used:])


def magnitudes(weight: GroupedWeight) -> jax.Array:
    """Of the two parts of each weight, f32 `[D, F]`."""
    w, scale, low = weight
    return jnp.abs(dequantize_groups(w, jnp.abs(scale), None if low is None else jnp.abs(low)))


@jax.jit
def product_and_weight(x_TD: jax.Array, weight: GroupedWeight) -> tuple[jax.Array, jax.Array]:
    """The native product, and the weight in f32."""
    return grouped_linear(x_TD, pack_grouped(*weight))[0], dequantize_groups(*weight)


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=8, deadline=None)
@given(SHAPES)
def test_it_is_an_integer_product_to_the_bit(on_each_instruction_set, bits, shape):
    """With scales and lows that are powers of two, and sums of less than 24 bits."""
    rows, groups, panels = shape[0], min(shape[1], 8), shape[2]
    rng = np.random.default_rng([*shape, bits])
    x_TD = rng.integers(-127, 128, (rows, 32 * groups))
    x_TD[:, ::32] = 127
    w, scale, low = drawn(groups, panels, bits)
    scale = (2.0 ** rng.integers(-1, 2, scale.shape)).astype(np.float16)
    low = None if low is None else (-(2.0 ** rng.integers(-1, 4, scale.shape))).astype(np.float16)
    powers_T = 2.0 ** rng.integers(-3, 4, rows)
    scaled_TD = (x_TD * powers_T[:, None]).astype(np.float32)

    def check():
        found_TF, w_DF = product_and_weight(scaled_TD, (w, scale, low))
        exact_TF = (x_TD @ np.asarray(w_DF, np.float64)) * powers_T[:, None]
        np.testing.assert_array_equal(found_TF, exact_TF.astype(np.float32))

    on_each_instruction_set(check)


@ON_EACH
@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize(("bits", "byte", "weight"), [(4, 255, 15), (8, 127, 127), (8, -128, -128)])
def test_largest_bytes_do_not_saturate(bits, byte, weight, rows):
    """Sums of products of the largest weights and inputs, of one sign."""
    x_TD = jnp.asarray(np.where(np.arange(rows) % 2, -1.0, 1.0)[:, None] * np.ones(64), jnp.float32)
    w = jnp.full((64 * bits // 8, 32), byte, jnp.uint8 if bits == 4 else jnp.int8)
    scale, low = jnp.ones((2, 32), jnp.float16), jnp.zeros((2, 32), jnp.float16)
    (found_TF,) = grouped_linear(x_TD, pack_grouped(w, scale, low if bits == 4 else None))
    np.testing.assert_allclose(found_TF, x_TD[:, :32] * 64 * weight, rtol=1e-6)


@ON_EACH
def test_every_scale_of_f16_is_read():
    """All finite values of f16, the smallest ones too, times one."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    scale = jnp.asarray(halves[np.isfinite(halves)].reshape(1, -1)[:, : 32 * 1984])
    w = jnp.zeros((32, scale.shape[1]), jnp.int8).at[0].set(1)
    x_TD = jnp.zeros((1, 32)).at[0, 0].set(127)
    for weight in ((w, scale, None), (jnp.zeros_like(w[:16], jnp.uint8), scale * 0, scale)):
        (found_TF,) = grouped_linear(x_TD, pack_grouped(*weight))
        np.testing.assert_array_equal(found_TF[0], scale[0].astype(jnp.float32) * 127)


@ON_EACH
def test_one_call_computes_weights_of_four_and_of_eight_bits():
    """In any order, also beside one that is not in panels."""
    x_TD = jnp.asarray(rows_of(7, 5))
    weights = [drawn(5, panels, bits) for panels, bits in ((2, 4), (1, 8), (3, 8), (1, 4))]
    operands = [pack_grouped(*weight) for weight in weights]
    operands[2] = weights[2]
    for found, operand in zip(jax.jit(grouped_linear)(x_TD, *operands), operands, strict=True):
        np.testing.assert_array_equal(found, grouped_linear(x_TD, operand)[0])
    np.testing.assert_array_equal(grouped_linear(x_TD, weights[2])[0], grouped_plain(x_TD, weights[2])[0])


W4, W8, HALVES = (2, 3, 4, 32, 4), (2, 3, 8, 32, 4), (2, 3, 32)
WRONG = {
    "inputs": ((2, 2, 4, 32, 4), jnp.uint8, (2, 2, 32), (2, 2, 32)),
    "nibbles without low": (W4, jnp.uint8, HALVES, None),
    "bytes with low": (W8, jnp.uint8, HALVES, HALVES),
    "signed": (W8, jnp.int8, HALVES, None),
    "panel": ((2, 3, 4, 31, 4), jnp.uint8, HALVES, HALVES),
    "scales": (W4, jnp.uint8, (2, 2, 32), HALVES),
    "lows": (W4, jnp.uint8, HALVES, (1, 3, 32)),
}


@pytest.mark.parametrize(("shape", "dtype", "scale", "low"), WRONG.values(), ids=WRONG)
def test_wrong_panels_are_refused_when_traced(shape, dtype, scale, low):
    """x has three groups."""
    halves = [None if each is None else jnp.ones(each, jnp.float16) for each in (scale, low)]
    with pytest.raises(ValueError, match=r"expected panels of its width"):
        jax.eval_shape(grouped_linear, jnp.ones((2, 96)), (jnp.ones(shape, dtype), *halves))


@pytest.mark.parametrize(("inputs", "dtype"), [(96, jnp.float32), (95, jnp.float16), (128, jnp.float16)])
def test_wrong_scales_and_inputs_are_refused_when_traced(inputs, dtype):
    weight = jnp.ones(W8, jnp.uint8), jnp.ones(HALVES, dtype), None
    with pytest.raises(ValueError, match=r"expected panels of its width"):
        jax.eval_shape(grouped_linear, jnp.ones((2, inputs)), weight)


REFUSED = {
    "scales": (W8, [((2, 2, 32), jnp.float16)]),
    "type of scales": (W8, [(HALVES, jnp.bfloat16)]),
    "no low": (W4, [(HALVES, jnp.float16)]),
    "inputs": ((2, 2, 8, 32, 4), [((2, 2, 32), jnp.float16)]),
    "one operand more": (W8, [(HALVES, jnp.float16), (HALVES, jnp.float16)]),
}


@ON_EACH
@pytest.mark.parametrize(("shape", "halves"), REFUSED.values(), ids=REFUSED)
def test_the_call_itself_refuses_wrong_operands(shape, halves):
    """Without the checks of the Python function."""
    operands = [jnp.ones(shape, jnp.uint8), *(jnp.ones(*each) for each in halves)]
    call = jax.ffi.ffi_call("distaff_grouped_linear", [jax.ShapeDtypeStruct((2, 64), jnp.float32)])
    with pytest.raises(jax.errors.JaxRuntimeError, match="grouped_linear: expected"):
        jax.block_until_ready(call(jnp.ones((2, 96)), jnp.int32(2), *operands))


@ON_EACH
def test_a_row_of_nan_reaches_no_other_row():
    x_TD = jnp.asarray(rows_of(20, 3))
    weight = pack_grouped(*drawn(3, 2, 4))
    (found_TF,) = grouped_linear(x_TD.at[5].set(jnp.nan), weight)
    assert np.all(np.isnan(found_TF[5]))
    np.testing.assert_array_equal(np.delete(found_TF, 5, 0), np.delete(grouped_linear(x_TD, weight)[0], 5, 0))
