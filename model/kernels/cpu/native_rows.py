"""Norms and sums of rows by the native kernels: a row's values are added in one order, whatever the number of
rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import rows as portable


def rms_norm(x_TD: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    """See `registry.NormKernel`; the portable one if x or the scale is not f32."""
    if x_TD.dtype != jnp.float32 or scale_D.dtype != jnp.float32:
        return portable.rms_norm(x_TD, scale_D, epsilon)
    if scale_D.shape != x_TD.shape[1:]:
        raise ValueError(
            f"scale {list(scale_D.shape)} for x {list(x_TD.shape)}; expected one for each channel"
        )
    call = jax.ffi.ffi_call("distaff_rms_norm", jax.ShapeDtypeStruct(x_TD.shape, jnp.float32))
    return call(x_TD, scale_D, epsilon=np.float32(epsilon))


def row_sum(x_BV: jax.Array) -> jax.Array:
    """See `registry.RowSumKernel`."""
    call = jax.ffi.ffi_call("distaff_row_sum", jax.ShapeDtypeStruct(x_BV.shape[:1], jnp.float32))
    return call(x_BV.astype(jnp.float32))
