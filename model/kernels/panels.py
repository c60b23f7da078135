"""How the native kernels' weights lie in memory: panels of 32 outputs, made once when the engine is built.

A kernel reads a panel from its beginning to its end, whatever the number of rows. Weights of f32 or bf16 are
`[F / 32, D, 32]`. Weights of int8 are `[F / 32, D / 4, 32, 4]`, u8, a weight w as w + 128: CPUs multiply
unsigned by signed bytes, in groups of four. Missing inputs of the last group count as zero.
"""

import jax
import jax.numpy as jnp

PANEL = 32
QUAD = 4


def pack(w_DF: jax.Array) -> jax.Array:
    """A weight `[D, F]` as panels, f16 as f32; 32 must divide F."""
    inputs, outputs = w_DF.shape
    w_DF = w_DF.astype(jnp.float32) if w_DF.dtype == jnp.float16 else w_DF
    return w_DF.reshape(inputs, outputs // PANEL, PANEL).swapaxes(0, 1)


def pack_transposed(w_FD: jax.Array) -> jax.Array:
    """An embedding `[F, D]` as panels of its transposed; 32 must divide F."""
    return pack(w_FD.T)


def pack_int8(w_DF: jax.Array) -> jax.Array:
    """An int8 weight `[D, F]` as panels; 32 must divide F."""
    inputs, outputs = w_DF.shape
    quads = -(-inputs // QUAD)
    padded_DF = jnp.pad(w_DF, ((0, quads * QUAD - inputs), (0, 0)))
    split = padded_DF.reshape(quads, QUAD, outputs // PANEL, PANEL)
    return (split.transpose(2, 0, 3, 1) ^ -128).view(jnp.uint8)


def unpack_rows(w: jax.Array, row_T: jax.Array) -> jax.Array:
    """Rows `[T, D]` of an embedding `[V, D]` that is in panels `[V / 32, D, 32]`; zeros for rows beyond V."""
    return w.at[row_T // PANEL, :, row_T % PANEL].get(mode="fill", fill_value=0)
