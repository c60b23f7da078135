"""Which kernel does which operation, on which platform.

A kernel is a plain function of one device's share; where the step is mapped over a mesh, that has happened
around it. The platform is the mesh's, not the host's, so that a step compiled ahead for a TPU on a machine
without one holds the TPU's kernels. The first kernel of each operation is portable: the fallback anywhere,
and what all others are held against.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import jax

from ..cache import Batch, Pool
from ..errors import ConfigError


class AttentionKernel(Protocol):
    """Every token of a step against its own sequence's pages, this step's keys and values among them."""

    def __call__(self, q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array: ...


class ExpertsKernel(Protocol):
    """`[T, D]`: the weighted sum, over each token's X experts, of what they make of it (SwiGLU).

    `expert_TX` i32 names them; E, the number of experts held here, means none, costs nothing and adds zero.
    `weight_TX` is f32.
    """

    def __call__(
        self, x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: "ExpertWeights"
    ) -> jax.Array: ...


class LinearKernel(Protocol):
    """`x @ w`, accumulated in f32, in x's dtype."""

    def __call__(self, x_TD: jax.Array, w_DF: jax.Array) -> jax.Array: ...


class Int8LinearKernel(Protocol):
    """`x @ (w * scale)` for int8 w and f32 scales, x made int8 on the way; in x's dtype.

    For the way called `turned`, w is `[F, D]` (see `Target.turned`).
    """

    def __call__(self, x_TD: jax.Array, w_DF: jax.Array, scale_F: jax.Array) -> jax.Array: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """The experts held here: gate and up `[E, D, F]`, down `[E, F, D]`; if int8, f32 scales `[E, outs]`.

    Where they lie apart (see `sharding.lay_apart`), gate, up and down are E arrays of `[1, …]` each.
    """

    gate: jax.Array | tuple[jax.Array, ...]
    up: jax.Array | tuple[jax.Array, ...]
    down: jax.Array | tuple[jax.Array, ...]
    gate_scale: jax.Array | None = None
    up_scale: jax.Array | None = None
    down_scale: jax.Array | None = None

    @property
    def count(self) -> int:
        """E."""
        return len(self.gate) if isinstance(self.gate, tuple) else self.gate.shape[0]


_WAYS: dict[str, dict[str, str]] = {
    "attention": {
        "blocks": "block_attention:attend",
        "ragged": "ragged_attention:attend",
        "triton": "triton_attention:attend",
    },
    "experts": {
        "blocks": "block_experts:block_experts",
        "wide_blocks": "block_experts:wide_block_experts",
        "ragged": "ragged_experts:ragged_experts",
    },
    "linear": {"plain": "linear:plain", "halves": "linear:halves"},
    "int8_linear": {
        "plain": "linear:int8_plain",
        "padded": "linear:int8_padded",
        "turned": "linear:int8_turned",
    },
}
"""Operation -> name of a way -> `module:function` in this folder; imported when chosen."""

_CHOICES: dict[str, dict[str, str]] = {
    "cpu": {"linear": "halves", "int8_linear": "turned"},
    "tpu": {"attention": "ragged", "experts": "ragged"},
    "cuda": {"attention": "triton", "experts": "wide_blocks"},
}
"""Platform -> operation -> way, where it is not the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """One way for each operation; `names` says which, for the log."""

    attention: AttentionKernel
    experts: ExpertsKernel
    linear: LinearKernel
    int8_linear: Int8LinearKernel
    names: tuple[tuple[str, str], ...] = field(default=(), compare=False)


def choose(platform: str, overrides: Mapping[str, str] | None = None) -> Kernels:
    """The kernels for a platform as JAX names it; one that we do not know gets the portable ones.

    Args:
      overrides: operation -> way, in place of ours.

    Raises:
      ConfigError: there is no such operation or way.
    """
    names = {operation: next(iter(ways)) for operation, ways in _WAYS.items()}
    names |= _CHOICES.get("cuda" if platform == "gpu" else platform, {})
    for operation, way in (overrides or {}).items():
        _check(operation, way)
        names[operation] = way
    functions = {operation: _load(_WAYS[operation][way]) for operation, way in names.items()}
    return Kernels(**functions, names=tuple(names.items()))


def _check(operation: str, way: str) -> None:
    if operation not in _WAYS:
        raise ConfigError(f"kernel {operation}={way}; expected an operation of {', '.join(_WAYS)}")
    if way not in _WAYS[operation]:
        raise ConfigError(f"kernel {operation}={way}; expected one of {', '.join(_WAYS[operation])}")


@cache
def _load(place: str) -> Any:
    module, _, function = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(f".{module}", __package__), function)
    return found
