"""Products with fp8 weights, portable and native, for every instruction set."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.model.kernels.cpu.native_linear import fp8_linear
from distaff.model.kernels.fp8 import fp8_plain
from distaff.model.kernels.panels import pack_fp8, pack_scales
from distaff.model.quantize import quantize_fp8, quantize_fp8_blocks, widen_fp8

ON_EACH = pytest.mark.usefixtures("instruction_set")

SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 5), st.integers(1, 5))
"""Rows, blocks of inputs, panels."""

Weight = tuple[jax.Array, jax.Array]


def drawn(inputs: int, outputs: int, *, blocks: bool) -> Weight:
    """Any finite bits, with scales of very different sizes."""
    rng = np.random.default_rng([inputs, outputs])
    bits = rng.integers(0, 127, (inputs, outputs)) | rng.integers(0, 2, (inputs, outputs)) << 7
    shape = (inputs // 128, outputs) if blocks else (outputs,)
    scale = (10.0 ** rng.uniform(-4, 1, shape)).astype(np.float32)
    return jnp.asarray(bits.astype(np.uint8).view(ml_dtypes.float8_e4m3fn)), jnp.asarray(scale)


def pack(w_DF: jax.Array, scale: jax.Array) -> Weight:
    return pack_fp8(w_DF), scale if scale.ndim == 1 else pack_scales(scale)


def exact(x_TD: np.ndarray, weight: Weight) -> tuple[np.ndarray, np.ndarray]:
    """The product, and the product of the magnitudes, f64."""
    w_DF, scale = (np.asarray(each).astype(np.float64) for each in weight)
    wide_DF = w_DF * (scale if scale.ndim == 1 else np.repeat(scale, 128, axis=0))
    return x_TD @ wide_DF, np.abs(x_TD) @ np.abs(wide_DF)


def rows_of(rows: int, inputs: int) -> np.ndarray:
    return np.random.default_rng([rows, inputs]).standard_normal((rows, inputs)).astype(np.float32)


@jax.jit
def products(x_TD: jax.Array, weight: Weight) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """The native product, those of three rows alone, and the portable product."""
    packed = pack(*weight)
    alone = [fp8_linear(x_TD[row : row + 1], packed)[0][0] for row in some_rows(len(x_TD))]
    return fp8_linear(x_TD, packed)[0], alone, fp8_plain(x_TD, weight)[0]


def some_rows(rows: int) -> list[int]:
    return [0, rows // 2, rows - 1]


@pytest.mark.parametrize("blocks", [False, True])
@settings(max_examples=8, deadline=None)
@given(SHAPES)
def test_products_are_exact_up_to_the_rounding_of_sums(on_each_instruction_set, blocks, shape):
    """And a row alone has the bits that it has among others."""
    rows, parts, panels = shape
    x_TD, weight = rows_of(rows, 128 * parts), drawn(128 * parts, 32 * panels, blocks=blocks)
    expected_TF, magnitude_TF = exact(x_TD, weight)

    def check():
        found_TF, alone, portable_TF = jax.tree.map(np.asarray, products(x_TD, weight))
        for product_TF in (found_TF, portable_TF):
            np.testing.assert_array_less(np.abs(product_TF - expected_TF), 2e-6 * magnitude_TF + 1e-30)
        for row, found_F in zip(some_rows(rows), alone, strict=True):
            np.testing.assert_array_equal(found_F, found_TF[row])

    on_each_instruction_set(check)


@pytest.mark.parametrize("inputs", [1, 3, 37, 300])
def test_scales_of_outputs_need_no_whole_blocks(inputs, on_each_instruction_set):
    x_TD, weight = rows_of(5, inputs), drawn(inputs, 64, blocks=False)
    expected_TF, magnitude_TF = exact(x_TD, weight)

    def check():
        for found_TF in (fp8_linear(x_TD, pack(*weight))[0], fp8_plain(x_TD, weight)[0]):
            np.testing.assert_array_less(np.abs(found_TF - expected_TF), 2e-6 * magnitude_TF + 1e-30)

    on_each_instruction_set(check)


@ON_EACH
def test_every_finite_number_of_fp8_is_read():
    """The smallest ones too."""
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    w_DF = np.where(np.isfinite(values), values, 0).astype(ml_dtypes.float8_e4m3fn)[None, :]
    (found_TF,) = fp8_linear(jnp.ones((1, 1)), pack(jnp.asarray(w_DF), jnp.ones(256)))
    np.testing.assert_array_equal(found_TF[0], w_DF[0].astype(np.float32))


@pytest.mark.parametrize("blocks", [False, True])
def test_every_number_of_rows_has_the_bits_of_the_same_rows_among_others(blocks, on_each_instruction_set):
    x_TD, weight = rows_of(40, 384), pack(*drawn(384, 64, blocks=blocks))

    def check():
        (whole_TF,) = fp8_linear(x_TD, weight)
        for rows in range(1, 27):
            np.testing.assert_array_equal(fp8_linear(x_TD[:rows], weight)[0], whole_TF[:rows])

    on_each_instruction_set(check)


@pytest.mark.parametrize("used", [0, 3, 40])
def test_rows_that_are_padding_are_zero_and_change_no_other(used):
    x_TD, weight = rows_of(40, 256), pack(*drawn(256, 64, blocks=True))
    (found_TF,) = fp8_linear(jnp.asarray(x_TD).at[used:].set(jnp.nan), weight, rows=jnp.int32(used))
    np.testing.assert_array_equal(found_TF[:used], fp8_linear(x_TD, weight)[0][:used])
    assert not np.any(found_TF[used:])


@ON_EACH
def test_one_call_computes_weights_with_scales_of_both_kinds():
    """In any order, also beside one that is not in panels."""
    x_TD = jnp.asarray(rows_of(7, 256))
    weights = [drawn(256, size, blocks=blocks) for size, blocks in ((64, True), (32, False), (96, True))]
    operands = [pack(*weights[0]), pack(*weights[1]), weights[2]]
    for found, operand in zip(jax.jit(fp8_linear)(x_TD, *operands), operands, strict=True):
        np.testing.assert_array_equal(found, fp8_linear(x_TD, operand)[0])
    np.testing.assert_array_equal(fp8_linear(x_TD, weights[2])[0], fp8_plain(x_TD, weights[2])[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_of_another_type_lose_nothing_to_a_scale_of_outputs(dtype):
    """fp8 is exact in every wider type, and scales are f32."""
    x_TD, weight = jnp.asarray(rows_of(3, 256), dtype), drawn(256, 64, blocks=False)
    expected_TF, magnitude_TF = exact(np.asarray(x_TD, np.float64), weight)
    (found_TF,) = fp8_plain(x_TD, weight)
    assert found_TF.dtype == jnp.float32
    np.testing.assert_array_less(np.abs(found_TF - expected_TF), 2e-6 * magnitude_TF)


@pytest.mark.parametrize(
    ("shape", "dtype", "scales"),
    [
        ((2, 255, 32), jnp.uint8, (64,)),
        ((2, 256, 31), jnp.uint8, (64,)),
        ((2, 256, 32), jnp.int8, (64,)),
        ((2, 256, 32), jnp.uint8, (63,)),
        ((2, 256, 32), jnp.uint8, (2, 3, 32)),
    ],
)
def test_wrong_panels_are_refused_when_traced(shape, dtype, scales):
    with pytest.raises(ValueError, match=r"expected panels of its width"):
        jax.eval_shape(fp8_linear, jnp.ones((2, 256)), (jnp.ones(shape, dtype), jnp.ones(scales)))


@ON_EACH
@pytest.mark.parametrize(
    ("shape", "scales"),
    [((2, 255, 32), [(64,)]), ((2, 256, 32), [(2, 3, 32)]), ((2, 256, 32), [(63,)]), ((2, 256, 32), [])],
)
def test_the_call_itself_refuses_wrong_operands(shape, scales):
    """Without the checks of the Python function."""
    call = jax.ffi.ffi_call("distaff_fp8_linear", [jax.ShapeDtypeStruct((2, 64), jnp.float32)])
    operands = [jnp.ones(shape, jnp.uint8), *map(jnp.ones, scales)]
    with pytest.raises(jax.errors.JaxRuntimeError, match="fp8_linear: expected"):
        jax.block_until_ready(call(jnp.ones((2, 256)), jnp.int32(2), *operands))


@pytest.mark.parametrize("stack", [(), (3,)])
def test_rounding_is_within_half_a_step(stack):
    """e4m3 has four significant bits; the largest magnitude of an output is 448 scales."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((*stack, 256, 64)), jnp.float32)
    for quantized in (quantize_fp8(w), quantize_fp8_blocks(w)):
        q, scale = quantized
        assert q.dtype == jnp.float8_e4m3fn
        assert float(jnp.abs(q.astype(jnp.float32)).max()) == 448
        step = jnp.maximum(jnp.abs(w) * 2.0**-4, _by_input(scale, w) * 2.0**-10)
        np.testing.assert_array_less(jnp.abs(widen_fp8(q, scale) - w), step * 1.0001)


def _by_input(scale: jax.Array, w: jax.Array) -> jax.Array:
    return scale[..., None, :] if scale.ndim < w.ndim else jnp.repeat(scale, 128, axis=-2)
