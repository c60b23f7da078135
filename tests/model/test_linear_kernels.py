"""Linear maps against numpy: int8 backends equal an int32 product bit for bit, the others up to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.model.kernels.linear import int8_padded, int8_plain, int8_transposed, plain, split_k
from distaff.model.quantize import quantize_last, quantize_weight

ROWS = [1, 2, 5]


def transposed(x_TD: jax.Array, weight: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    """The backend for transposed weights, called with weights as the others take them."""
    w_DF, scale_F = weight
    return int8_transposed(x_TD, (w_DF.T, scale_F))


def drawn(rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    shapes = (rows, inputs), (inputs, outputs)
    x_TD, w_DF = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x_TD, w_DF


@pytest.mark.parametrize("backend", [int8_plain, int8_padded, transposed])
@pytest.mark.parametrize("rows", ROWS)
def test_int8_is_an_integer_product_to_the_bit(rows: int, backend) -> None:
    """Between rounding and scaling nothing is lost: scales that are powers of two keep the bits of int32.

    Rows and columns with a largest magnitude of 127 times a power of two have such scales; 700 products of up
    to 127 x 127 stay below 2^24, which f32 holds exactly.
    """
    rng = np.random.default_rng(rows)
    integers_TD, integers_DF = rng.integers(-127, 128, (rows, 700)), rng.integers(-127, 128, (700, 33))
    integers_TD[:, 3], integers_DF[5] = 127, -127
    powers_T, powers_F = 2.0 ** rng.integers(-3, 4, rows), 2.0 ** rng.integers(-3, 4, 33)
    w_DF, scale_F = quantize_weight(jnp.asarray(integers_DF * powers_F, jnp.float32))
    np.testing.assert_array_equal(w_DF, integers_DF)
    x_TD = jnp.asarray(integers_TD * powers_T[:, None], jnp.float32)
    product_TF = integers_TD.astype(np.int32) @ integers_DF.astype(np.int32)
    assert np.abs(product_TF).max() < 2**24
    expected_TF = product_TF * powers_T[:, None] * powers_F
    (found_TF,) = jax.jit(backend)(x_TD, (w_DF, scale_F))
    np.testing.assert_array_equal(found_TF, expected_TF.astype(np.float32))


@pytest.mark.parametrize("backend", [int8_plain, int8_padded, transposed])
@pytest.mark.parametrize("rows", ROWS)
def test_int8_is_near_the_wide_product(rows: int, backend) -> None:
    """Each factor is off by half a 127th of its row's or column's largest, at random: 1 % of the product."""
    x_TD, w_DF = drawn(rows, 512, 64)
    (found_TF,), expected_TF = backend(jnp.asarray(x_TD), quantize_weight(jnp.asarray(w_DF))), x_TD @ w_DF
    assert np.abs(found_TF - expected_TF).mean() < 0.015 * np.abs(expected_TF).mean()


def test_rows_are_rounded_each_by_its_own_scale() -> None:
    """A large row does not reduce the precision of a small one; a row of zeros stays zero."""
    x_TD = jnp.asarray([[1.0, -0.5], [1000.0, 3.0], [0.0, 0.0]], jnp.float32)
    rounded_TD, scale_T = quantize_last(x_TD)
    np.testing.assert_array_equal(rounded_TD, [[127, -64], [127, 0], [0, 0]])
    np.testing.assert_allclose(scale_T[:2], [1 / 127, 1000 / 127])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inputs", [64, 63])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("backend", [plain, split_k])
def test_wide_backends_are_the_product(backend, rows: int, inputs: int, dtype: str) -> None:
    """In f32, also for an odd number of inputs, which cannot be split."""
    x_TD, w_DF = (jnp.asarray(a, dtype) for a in drawn(rows, inputs, 48))
    (found_TF,) = jax.jit(backend)(x_TD, w_DF)
    expected_TF = np.asarray(x_TD, np.float64) @ np.asarray(w_DF, np.float64)
    assert found_TF.dtype == jnp.float32
    tolerance = 1e-5 if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(found_TF.astype(jnp.float32), expected_TF, rtol=tolerance, atol=1e-4)
