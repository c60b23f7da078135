"""Low-rank maps of adapters in portable XLA: two products with the factors of all adapters at once.

Between them each row keeps the part of its own adapter. So every weight is read once, and a step costs the
products with all adapters, whether or not rows have them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Stack = tuple[jax.Array, jax.Array, jax.Array]
"""The factors of S adapters, `[S, D, R]` and `[S, R, F]`, and which adapters have this map, i32 `[S]`.

For the backend `native`, factors can be panels: `[S, R / 16, D, 16]`, and `[S, F / 32, R, 32]` with F padded
to whole panels.
"""


def plain(
    x_TD: jax.Array,
    index_T: jax.Array,
    products: Sequence[jax.Array],
    stacks: Sequence[Stack],
    rows: jax.Array | None = None,
) -> list[jax.Array]:
    """See `registry.AdaptersKernel`."""
    return [y + _product(x_TD, index_T, *stack) for y, stack in zip(products, stacks, strict=True)]


def _product(
    x_TD: jax.Array, index_T: jax.Array, down_SDR: jax.Array, up_SRF: jax.Array, used_S: jax.Array
) -> jax.Array:
    place_S = jnp.arange(len(used_S), dtype=jnp.int32)
    own_TS = (index_T[:, None] == place_S[None, :]) & (used_S > 0)[None, :]
    down_SDR, up_SRF = down_SDR.astype(x_TD.dtype), up_SRF.astype(x_TD.dtype)
    h_TSR = jnp.einsum("TD,SDR->TSR", x_TD, down_SDR, preferred_element_type=jnp.float32)
    h_TSR = jnp.where(own_TS[:, :, None], h_TSR, 0.0).astype(x_TD.dtype)
    return jnp.einsum("TSR,SRF->TF", h_TSR, up_SRF, preferred_element_type=jnp.float32)
