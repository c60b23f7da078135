"""Linear maps of the same inputs as one weight: query, key and value; gate and up.

On a GPU one wide product takes one launch, and XLA would otherwise join the weights itself, at every step.
Checkpoints store them apart, so they are joined when the engine is built. Their outputs come one after
another, in their biases and in the scales of quantised weights too. Each device joins its own shares: its
share of a joined weight is its shares of the parts, and nothing is sent.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .sharding import Placement, over_shares

JOINED = {("q", "k", "v"): "qkv", ("gate", "up"): "gate_up"}
"""The name of a joined weight, by the names of its parts."""


def parts_of(name: str) -> tuple[str, ...]:
    """The names of the stored parameters that a parameter of the network consists of: often its own alone."""
    block, dot, inner = name.rpartition(".")
    for parts, joined in JOINED.items():
        if inner.startswith(joined):
            return tuple(f"{block}{dot}{part}{inner.removeprefix(joined)}" for part in parts)
    return (name,)


def join_placements(parts: Sequence[Placement]) -> Placement:
    """The placement of the parts as one parameter; they are all divided by outputs, or all whole."""
    outputs = sum(part.shape[-1] for part in parts)
    return replace(parts[0], shape=(*parts[0].shape[:-1], outputs))


def join(parts: Sequence[jax.Array], where: Placement) -> jax.Array:
    """The parts, placed, as one parameter at `where`. When it is returned, they are not needed any more."""
    if len(parts) == 1:
        return parts[0]
    sharding = parts[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return jax.block_until_ready(_joined(mesh, where.spec, *parts))


@partial(jax.jit, static_argnums=(0, 1))
def _joined(mesh: Mesh | None, spec: P, *parts: jax.Array) -> jax.Array:
    def one_after_another(*shares: jax.Array) -> jax.Array:
        return jnp.concatenate(shares, axis=-1)

    return over_shares(one_after_another, mesh, spec, spec)(*parts) if mesh else one_after_another(*parts)
