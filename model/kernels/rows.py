"""Norms and sums of rows in portable XLA.

XLA adds a row's values in an order that depends on the number of rows.
"""

import jax
import jax.numpy as jnp


def rms_norm(x_TD: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    """See `registry.NormKernel`."""
    x32_TD = x_TD.astype(jnp.float32)
    mean_T1 = jnp.mean(jnp.square(x32_TD), axis=-1, keepdims=True)
    normed_TD = (x32_TD * jax.lax.rsqrt(mean_T1 + epsilon)).astype(x_TD.dtype)
    return normed_TD * scale_D[None, :]


def row_sum(x_BV: jax.Array) -> jax.Array:
    """See `registry.RowSumKernel`."""
    return x_BV.sum(axis=-1)
