"""Products with weights in groups in portable XLA, a tile of outputs at a time: no whole weight is widened.

`rounded` computes as the native kernels for CPUs do: rows are rounded to int8 by groups of 32 inputs, sums
are f32. `unrounded` is for TPUs: rows stay as they are and weights are rounded to their type, so that the
matrix unit multiplies them. XLA then dequantises a tile inside the product, in the chip's own memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ..parameters import GROUP
from ..quantize import GroupedWeight, dequantize_groups, quantize_groups_of_activations

GroupedProduct = Callable[[jax.Array, GroupedWeight, jax.Array], jax.Array]
"""Rows times weight e of a stack."""

TILE = 1 << 21
"""The most weights of a tile: 8 MiB in f32. The tile of a wide map has TILE / D outputs."""

WIDTH = 128
"""A tile has a multiple of so many outputs: those of a TPU's registers."""


def rounded(x_TD: jax.Array, weight: GroupedWeight, e: jax.Array | None = None) -> jax.Array:
    """Rows rounded to int8 by groups of 32 inputs times a weight, or weight e of a stack: f32 `[T, F]`."""
    q_TD, scale_TG = quantize_groups_of_activations(x_TD.astype(jnp.float32))
    groups = q_TD.astype(jnp.float32).reshape(*scale_TG.shape, -1) * scale_TG[:, :, None]
    rounded_TD = groups.reshape(x_TD.shape)
    return _in_tiles(lambda tile: _dot(rounded_TD, dequantize_groups(*tile)), x_TD.shape, weight, e)


def unrounded(x_TD: jax.Array, weight: GroupedWeight, e: jax.Array | None = None) -> jax.Array:
    """Rows times a weight, or weight e of a stack, rounded to their type: f32 `[T, F]`.

    Low halves of bytes are multiplied by even inputs, high halves by odd ones: nothing moves between lanes,
    which would keep XLA from dequantising inside a product. Without the barrier it would read each tile from
    the main memory of a TPU for either half.
    """
    parts = 1 if weight[2] is None else 2
    x_PTI = [x_TD[:, part::parts] for part in range(parts)]

    def product(tile: GroupedWeight) -> jax.Array:
        first, *second = map(_dot, x_PTI, dequantize_lines(lax.optimization_barrier(tile), x_TD.dtype))
        return sum(second, first)

    return _in_tiles(product, x_TD.shape, weight, e)


def grouped_unrounded(
    x_TD: jax.Array, *weights: GroupedWeight, rows: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """See `registry.GroupedLinearKernel` and `unrounded`."""
    return tuple(unrounded(x_TD, weight) for weight in weights)


def dequantize_lines(weight: GroupedWeight, dtype: jnp.dtype) -> list[jax.Array]:
    """The weights in the low and in the high halves of bytes, `[D / 2, F]` each, or in bytes, `[D, F]`.

    They are computed in f32 and rounded to a type. There are whole groups only.
    """
    q, scale, low = weight
    values = [q] if low is None else [q & 15, q >> 4]
    halves = [_repeated(half, GROUP // len(values)) for half in (scale, low) if half is not None]
    return [_scaled(each, *halves).astype(dtype) for each in values]


def tile_of(inputs: int, outputs: int) -> int:
    """The number of outputs of a tile."""
    return min(outputs, max(1, TILE // (inputs * WIDTH)) * WIDTH)


def _in_tiles(
    product: Callable[[GroupedWeight], jax.Array],
    shape: tuple[int, ...],
    weight: GroupedWeight,
    e: jax.Array | None,
) -> jax.Array:
    """The product of rows of this shape, tile by tile; the last one may repeat some outputs of the others."""
    (rows, inputs), outputs = shape, weight[1].shape[-1]
    size = tile_of(inputs, outputs)

    def cut(part: jax.Array, at: jax.Array | int) -> jax.Array:
        if e is None:
            return lax.dynamic_slice_in_dim(part, at, size, axis=1)
        return lax.dynamic_slice(part, (e, 0, at), (1, part.shape[1], size))[0]

    def add(i: jax.Array, y_TF: jax.Array) -> jax.Array:
        at = jnp.minimum(i * size, outputs - size)
        tile = jax.tree.map(lambda part: cut(part, at), weight)
        return lax.dynamic_update_slice_in_dim(y_TF, product(tile), at, axis=1)

    if size == outputs:
        return product(weight if e is None else jax.tree.map(lambda part: part[e], weight))
    return lax.fori_loop(0, -(-outputs // size), add, jnp.zeros((rows, outputs), jnp.float32))


def _dot(x_TI: jax.Array, w_IF: jax.Array) -> jax.Array:
    return jnp.dot(x_TI, w_IF, preferred_element_type=jnp.float32)


def _repeated(half_GF: jax.Array, times: int) -> jax.Array:
    """A scale or a low for each line of bytes, f32."""
    groups, outputs = half_GF.shape
    each = jnp.broadcast_to(half_GF[:, None, :], (groups, times, outputs))
    return each.reshape(groups * times, outputs).astype(jnp.float32)


def _scaled(q_IF: jax.Array, scale_IF: jax.Array, low_IF: jax.Array | None = None) -> jax.Array:
    w_IF = q_IF.astype(jnp.float32) * scale_IF
    return w_IF if low_IF is None else w_IF + low_IF
