"""Linear maps: `x @ w` with f32 or bf16 weights, and with int8 ones.

Weights are `[inputs, outputs]`, except in `int8_transposed`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..quantize import quantize_last


def plain(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """One product, accumulated in f32."""
    return jnp.dot(x_TD, w_DF, preferred_element_type=jnp.float32).astype(x_TD.dtype)


def split_k(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """Split-K for a single row: two products over halves of D, then their sum; more rows as `plain`.

    XLA gives each half of a batched product to one CPU core, which reads its half of the weights
    sequentially. On two cores that takes 9.5 ms instead of 12.1 for the layers of a 135 M model; with two
    rows or more the plain product is faster.
    """
    if x_TD.shape[0] > 1 or x_TD.shape[1] % 2:
        return plain(x_TD, w_DF)
    x_2TD = x_TD.reshape(2, 1, -1)
    w_2DF = w_DF.reshape(2, x_2TD.shape[2], -1)
    y_2TF = jnp.einsum("ATD,ADF->ATF", x_2TD, w_2DF, preferred_element_type=jnp.float32)
    return y_2TF.sum(axis=0).astype(x_TD.dtype)


def int8_plain(x_TD: jax.Array, w_DF: jax.Array, scale_F: jax.Array) -> jax.Array:
    """Rows rounded to int8, one int8 x int8 -> int32 product, scales last."""
    return _int8_product(x_TD, w_DF, scale_F, inputs=0)


def int8_padded(x_TD: jax.Array, w_DF: jax.Array, scale_F: jax.Array) -> jax.Array:
    """As `int8_plain`, but pads a single row to two: on a CPU XLA multiplies one int8 row element by element,
    nineteen times slower than two rows."""
    return _int8_product(_two_rows(x_TD), w_DF, scale_F, inputs=0)[: x_TD.shape[0]]


def int8_transposed(x_TD: jax.Array, w_FD: jax.Array, scale_F: jax.Array) -> jax.Array:
    """As `int8_padded`, with weights `[outputs, inputs]`: a tenth to a quarter faster on a CPU."""
    return _int8_product(_two_rows(x_TD), w_FD, scale_F, inputs=1)[: x_TD.shape[0]]


def _two_rows(x_TD: jax.Array) -> jax.Array:
    return jnp.pad(x_TD, ((0, 1), (0, 0))) if x_TD.shape[0] == 1 else x_TD


def _int8_product(x_TD: jax.Array, w: jax.Array, scale_F: jax.Array, *, inputs: int) -> jax.Array:
    """`inputs` is the axis of the weights that is contracted with x."""
    rounded_TD, scale_T = quantize_last(x_TD)
    axes = (((1,), (inputs,)), ((), ()))
    product_TF = lax.dot_general(rounded_TD, w, axes, preferred_element_type=jnp.int32).astype(jnp.float32)
    return (product_TF * scale_T[:, None] * scale_F[None, :]).astype(x_TD.dtype)
