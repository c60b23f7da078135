"""New arrays of zeros with lazily allocated memory: each page is allocated on its first write.

A KV pool is sized for the maximum number of running tokens, and most of it is used late or never. Lazy
allocation makes a start faster and keeps the resident memory at what is used.
"""

from collections.abc import Sequence

import jax


def zeros(shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """See `registry.ZerosKernel`."""
    return list(jax.ffi.ffi_call("distaff_zeros", list(shapes))())
