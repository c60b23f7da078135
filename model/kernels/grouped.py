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
from .tiles import in_tiles

GroupedProduct = Callable[[jax.Array, GroupedWeight, jax.Array], jax.Array]
"""Rows times weight e of a stack."""


def rounded(x_TD: jax.Array, weight: GroupedWeight, e: jax.Array | None = None) -> jax.Array:
    """Rows rounded to int8 by groups of 32 inputs times a weight, or weight e of a stack: f32 `[T, F]`."""
    q_TD, scale_TG = quantize_groups_of_activations(x_TD.astype(jnp.float32))
    groups = q_TD.astype(jnp.float32).reshape(*scale_TG.shape, -1) * scale_TG[:, :, None]
    rounded_TD = groups.reshape(x_TD.shape)
    return in_tiles(lambda tile: _dot(rounded_TD, dequantize_groups(*tile)), x_TD.shape, weight, e)


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

    return in_tiles(product, x_TD.shape, weight, e)


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
