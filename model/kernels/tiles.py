"""Products with quantised weights a tile of outputs at a time, so that no whole weight is widened."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

TILE = 1 << 21
"""The most weights of a tile: 8 MiB in f32. The tile of a wide map has TILE / D outputs."""

WIDTH = 128
"""A tile has a multiple of so many outputs: those of a TPU's registers."""


def tile_of(inputs: int, outputs: int) -> int:
    """The number of outputs of a tile."""
    return min(outputs, max(1, TILE // (inputs * WIDTH)) * WIDTH)


def in_tiles(
    product: Callable[[Any], jax.Array], shape: tuple[int, ...], weight: Any, e: jax.Array | None
) -> jax.Array:
    """The product of rows of this shape, tile by tile: f32 `[T, F]`.

    The last tile may repeat some outputs of the others.

    Args:
      product: rows times a tile of the weight. weight: arrays with outputs as their last axis; or stacks of
        such arrays, and e says which of them is multiplied.
    """
    (rows, inputs), outputs = shape, jax.tree.leaves(weight)[0].shape[-1]
    size = tile_of(inputs, outputs)

    def cut(part: jax.Array, at: jax.Array | int) -> jax.Array:
        if e is None:
            return lax.dynamic_slice_in_dim(part, at, size, axis=part.ndim - 1)
        between = part.shape[1:-1]
        start, sizes = (e, *(0 for _ in between), at), (1, *between, size)
        return lax.dynamic_slice(part, start, sizes)[0]

    def add(i: jax.Array, y_TF: jax.Array) -> jax.Array:
        at = jnp.minimum(i * size, outputs - size)
        tile = jax.tree.map(lambda part: cut(part, at), weight)
        return lax.dynamic_update_slice_in_dim(y_TF, product(tile), at, axis=1)

    if size == outputs:
        return product(weight if e is None else jax.tree.map(lambda part: part[e], weight))
    return lax.fori_loop(0, -(-outputs // size), add, jnp.zeros((rows, outputs), jnp.float32))
