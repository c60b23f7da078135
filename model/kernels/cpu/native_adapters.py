"""Low-rank maps of adapters by the native kernels: only rows with adapters are computed, one after another.

A row's products are added in the same order in any company.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .. import adapters as portable


def adapters(
    x_TD: jax.Array,
    index_T: jax.Array,
    products: Sequence[jax.Array],
    stacks: Sequence[portable.Stack],
    rows: jax.Array | None = None,
) -> Sequence[jax.Array]:
    """See `registry.AdaptersKernel`; the portable ones unless all stacks are panels."""
    if any(down.ndim == 3 for down, _, _ in stacks):
        return portable.plain(x_TD, index_T, products, stacks, rows)
    used = jnp.int32(x_TD.shape[0]) if rows is None else rows
    operands = [each for y, stack in zip(products, stacks, strict=True) for each in (y, *stack)]
    call = jax.ffi.ffi_call(
        "distaff_adapters",
        [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in products],
        input_output_aliases={3 + 4 * place: place for place in range(len(products))},
    )
    return call(x_TD, index_T, used, *operands)
