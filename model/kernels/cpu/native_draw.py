"""Draws by the native kernels: only rows that draw cost anything, and few logarithms are computed."""

import jax
import jax.numpy as jnp

from ..draw import DrawSettings


def draw(logits_BV: jax.Array, settings: DrawSettings) -> jax.Array:
    """See `registry.DrawKernel`."""
    return draw_with_floors(logits_BV, settings)[0]


def draw_with_floors(logits_BV: jax.Array, settings: DrawSettings) -> tuple[jax.Array, jax.Array]:
    """The drawn ids, and the smallest weight that each row keeps, f32 `[B]` (see `draw.floors`)."""
    rows = logits_BV.shape[:1]
    results = jax.ShapeDtypeStruct(rows, jnp.int32), jax.ShapeDtypeStruct(rows, jnp.float32)
    id_B, floor_B = jax.ffi.ffi_call("distaff_draw", results)(logits_BV, *settings)
    return id_B, floor_B
