"""Products with fp8 weights in portable XLA, a tile of outputs at a time: no whole weight is widened.

A tile is widened to the type of the rows, which is exact, and the sums are scaled; in blocks, weights are
scaled in f32 and rounded to that type.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..parameters import FLOAT8
from ..quantize import widen_fp8
from .tiles import in_tiles

Fp8Weight = tuple[jax.Array, jax.Array]
"""The rounded weight and f32 scales, `[F]` or of blocks, `[D/128, F]`."""


def fp8_plain(x_TD: jax.Array, *weights: Fp8Weight, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """See `registry.Fp8LinearKernel`."""
    return tuple(fp8_product(x_TD, weight) for weight in weights)


def fp8_whole(x_TD: jax.Array, *weights: Fp8Weight, rows: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """As `fp8_plain`, but with scales of outputs one product: XLA converts weights inside it on a TPU."""
    return tuple(
        _in_type_of(x_TD, weight) if weight[1].ndim == 1 else fp8_product(x_TD, weight) for weight in weights
    )


def fp8_product(x_TD: jax.Array, weight: Fp8Weight, e: jax.Array | None = None) -> jax.Array:
    """Rows times a weight, or weight e of a stack: f32 `[T, F]`.

    Tiles are cut out of bytes, because where XLA does not know fp8 it would widen what it cuts.
    """
    w, scale = weight

    def product(tile: Fp8Weight) -> jax.Array:
        bits_DF, scale = tile
        return _in_type_of(x_TD, (lax.bitcast_convert_type(bits_DF, FLOAT8), scale))

    return in_tiles(product, x_TD.shape, (as_bytes(w), scale), e)


def as_bytes(w: jax.Array) -> jax.Array:
    """The bits of fp8 numbers, u8."""
    return lax.bitcast_convert_type(w, jnp.uint8)


def _in_type_of(x_TD: jax.Array, weight: Fp8Weight) -> jax.Array:
    w_DF, scale = weight
    if scale.ndim == 1:
        return _dot(x_TD, w_DF.astype(x_TD.dtype)) * scale[None, :]
    return _dot(x_TD, widen_fp8(w_DF, scale).astype(x_TD.dtype))


def _dot(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    return jnp.dot(x_TD, w_DF, preferred_element_type=jnp.float32)
