"""Low-rank maps of adapters by the native kernels: only rows with adapters are computed, one after another.

A row's products are added in the same order in any company.
"""

import jax
import jax.numpy as jnp

from .. import adapters as portable
from ..panels import PANEL


def adapters(
    x_TD: jax.Array, index_T: jax.Array, *stacks: portable.Stack, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """See `registry.AdaptersKernel`; the portable ones unless all stacks are panels."""
    if not stacks or any(down.ndim == 3 for down, _, _ in stacks):
        return portable.plain(x_TD, index_T, *stacks, rows=rows)
    tokens = x_TD.shape[0]
    results = [jax.ShapeDtypeStruct((tokens, up.shape[1] * PANEL), jnp.float32) for _, up, _ in stacks]
    used = jnp.int32(tokens) if rows is None else rows
    operands = [operand for stack in stacks for operand in stack]
    return tuple(jax.ffi.ffi_call("distaff_adapters", results)(x_TD, index_T, used, *operands))
