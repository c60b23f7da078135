"""How the native kernels' weights lie in memory: panels of 32 outputs, made once when the engine is built.

A kernel reads a panel from its beginning to its end, whatever the number of rows. Weights of f32 or bf16 are
`[F / 32, D, 32]`. Weights of int8 are `[F / 32, D / 4, 32, 4]`, u8, a weight w as w + 128: CPUs multiply
unsigned by signed bytes, in groups of four. Missing inputs of the last group count as zero. Weights of fp8
are as f32, by their bits, u8, and the scales of their blocks f32 `[F / 32, D / 128, 32]`.

Weights that are quantised in groups of 32 inputs (`quantize.py` has their portable form) are
`[F / 32, D / 32, 4, 32, 4]` with 4 bits: the byte `[panel, group, p, output, i]` has input
`32 group + 4 p + i` in its low half and the input 16 later in its high half. With 8 bits they are as int8, by
groups: `[F / 32, D / 32, 8, 32, 4]`. Their scales and lows are f16 `[F / 32, D / 32, 32]`.

Experts are stacked: `[E, F / 32, D, 32]`, `[E, F / 32, D / 4, 32, 4]`, and in groups with E before the same
axes, so that an expert's panels are contiguous.
"""

import jax
import jax.numpy as jnp

from ..parameters import GROUP
from ..quantize import split_nibbles

PANEL = 32
QUAD = 4


def pack(w_DF: jax.Array) -> jax.Array:
    """A weight `[D, F]` as panels, f16 as f32; 32 must divide F."""
    inputs, outputs = w_DF.shape
    w_DF = w_DF.astype(jnp.float32) if w_DF.dtype == jnp.float16 else w_DF
    return w_DF.reshape(inputs, outputs // PANEL, PANEL).swapaxes(0, 1)


def pack_padded(w_DF: jax.Array) -> jax.Array:
    """A weight `[D, F]` with any F as panels; the missing outputs of the last one are zero."""
    return pack(jnp.pad(w_DF, ((0, 0), (0, -w_DF.shape[1] % PANEL))))


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


def pack_fp8(w_DF: jax.Array) -> jax.Array:
    """The bits of an fp8 weight `[D, F]` as panels; 32 must divide F."""
    return pack(w_DF.view(jnp.uint8))


def unpack_rows(w: jax.Array, row_T: jax.Array) -> jax.Array:
    """Rows `[T, D]` of an embedding `[V, D]` that is in panels `[V / 32, D, 32]`; zeros for rows beyond V."""
    return w.at[row_T // PANEL, :, row_T % PANEL].get(mode="fill", fill_value=0)


def pack_bytes(w_DF: jax.Array) -> jax.Array:
    """A weight int8 `[D, F]` in groups as panels."""
    inputs, outputs = w_DF.shape
    split = w_DF.reshape(inputs // GROUP, GROUP // QUAD, QUAD, outputs // PANEL, PANEL)
    return (split.transpose(3, 0, 1, 4, 2) ^ -128).view(jnp.uint8)


def pack_nibbles(w: jax.Array) -> jax.Array:
    """A weight of 4 bits, u8 `[D/2, F]`, as panels."""
    q_DF = split_nibbles(w)
    inputs, outputs = q_DF.shape
    split = q_DF.reshape(inputs // GROUP, 2, GROUP // 2 // QUAD, QUAD, outputs // PANEL, PANEL)
    return (split[:, 0] | split[:, 1] << 4).transpose(3, 0, 1, 4, 2)


def pack_scales(scale_GF: jax.Array) -> jax.Array:
    """The scales or lows of groups, `[D/32, F]`, or the scales of blocks, `[D/128, F]`, as panels."""
    groups, outputs = scale_GF.shape
    return scale_GF.reshape(groups, outputs // PANEL, PANEL).swapaxes(0, 1)


def unpack_grouped_rows(w: jax.Array, scale: jax.Array, row_T: jax.Array) -> jax.Array:
    """Rows, f32 `[T, D]`, of an embedding `[V, D]` that is a weight `[D, V]` in groups of 8 bits.

    The weight is in panels or in its portable form. Rows beyond V are zero.
    """
    if w.ndim == 2:
        q_DT = w.at[:, row_T].get(mode="fill", fill_value=0)
        scale_GT = scale.at[:, row_T].get(mode="fill", fill_value=0)
        q_TG32, scale_TG = q_DT.T.reshape(len(row_T), -1, GROUP), scale_GT.T
    else:
        panel_T, output_T = row_T // PANEL, row_T % PANEL
        bytes_TG84 = w.at[panel_T, :, :, output_T].get(mode="fill", fill_value=128)
        q_TG32 = bytes_TG84.reshape(len(row_T), -1, GROUP).view(jnp.int8) ^ -128
        scale_TG = scale.at[panel_T, :, output_T].get(mode="fill", fill_value=0)
    values = q_TG32.astype(jnp.float32) * scale_TG.astype(jnp.float32)[:, :, None]
    return values.reshape(len(row_T), -1)
