"""New arrays of zeros whose memory is allocated when it is first written.

A KV pool is made for the most tokens that can be running, and most of it is used late or never. So a server
starts sooner, and occupies what it uses.
"""

from collections.abc import Sequence

import jax


def zeros(shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """See `registry.ZerosKernel`."""
    return list(jax.ffi.ffi_call("distaff_zeros", list(shapes))())
