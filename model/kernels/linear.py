"""Linear maps: `x @ w` with f32 or bf16 weights, with int8 ones, and with weights in groups.

Weights are `[inputs, outputs]`, except in `int8_transposed`. All weights of a call are for the same rows.
Results are f32. XLA's shapes are static, so all rows are computed, whatever `rows` is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ..quantize import GroupedWeight, quantize_last
from .grouped import rounded

Int8Weight = tuple[jax.Array, jax.Array]
"""The rounded weight and the f32 scales of its outputs."""


def plain(x_TD: jax.Array, *weights: jax.Array, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """One product for each weight, accumulated in f32."""
    return tuple(_product(x_TD, w_DF) for w_DF in weights)


def split_k(x_TD: jax.Array, *weights: jax.Array, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """Split-K for a single row: two products over halves of D, then their sum; more rows as `plain`.

    XLA gives each half of a batched product to one CPU core, which reads its half of the weights
    sequentially. On two cores that takes 9.5 ms instead of 12.1 for the layers of a 135 M model; with two
    rows or more the plain product is faster.
    """
    if x_TD.shape[0] > 1 or x_TD.shape[1] % 2:
        return plain(x_TD, *weights)
    return tuple(_in_halves(x_TD, w_DF) for w_DF in weights)


def _product(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    return jnp.dot(x_TD, w_DF, preferred_element_type=jnp.float32)


def _in_halves(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    x_2TD = x_TD.reshape(2, 1, -1)
    w_2DF = w_DF.reshape(2, x_2TD.shape[2], -1)
    y_2TF = jnp.einsum("ATD,ADF->ATF", x_2TD, w_2DF, preferred_element_type=jnp.float32)
    return y_2TF.sum(axis=0)


def int8_plain(x_TD: jax.Array, *weights: Int8Weight, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """Rows rounded to int8, int8 x int8 -> int32 products, scales last."""
    return _int8_products(x_TD, weights, inputs=0)


def int8_padded(
    x_TD: jax.Array, *weights: Int8Weight, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """As `int8_plain`, but pads a single row to two: on a CPU XLA multiplies one int8 row element by element,
    nineteen times slower than two rows."""
    return tuple(y[: x_TD.shape[0]] for y in _int8_products(_two_rows(x_TD), weights, inputs=0))


def int8_transposed(
    x_TD: jax.Array, *weights: Int8Weight, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """As `int8_padded`, with weights `[outputs, inputs]`: a tenth to a quarter faster on a CPU."""
    return tuple(y[: x_TD.shape[0]] for y in _int8_products(_two_rows(x_TD), weights, inputs=1))


def grouped_plain(
    x_TD: jax.Array, *weights: GroupedWeight, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Rows rounded to int8 by groups of 32 inputs, and products with widened tiles of the weights, in f32."""
    return tuple(rounded(x_TD, weight) for weight in weights)


def _two_rows(x_TD: jax.Array) -> jax.Array:
    return jnp.pad(x_TD, ((0, 1), (0, 0))) if x_TD.shape[0] == 1 else x_TD


def _int8_products(x_TD: jax.Array, weights: Sequence[Int8Weight], *, inputs: int) -> tuple[jax.Array, ...]:
    """`inputs` is the axis of the weights that is contracted with x."""
    rounded_TD, scale_T = quantize_last(x_TD)
    axes = (((1,), (inputs,)), ((), ()))

    def scaled(w: jax.Array, scale_F: jax.Array) -> jax.Array:
        product_TF = lax.dot_general(rounded_TD, w, axes, preferred_element_type=jnp.int32)
        product_TF = product_TF.astype(jnp.float32)
        return product_TF * scale_T[:, None] * scale_F[None, :]

    return tuple(scaled(*weight) for weight in weights)
