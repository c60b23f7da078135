"""Which kernel computes each operation on each platform.

A kernel is a plain function of one device's share; the mapping over a mesh happens outside it. The platform
is the mesh's, not the host's, so that a step compiled ahead of time for a TPU on a machine without one has
the TPU's kernels. The first backend of each operation is portable: it is the fallback on every platform and
the reference for all others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ..cache import Batch, Pool
from ..errors import ConfigError
from ..quantize import GroupedWeight
from .adapters import Stack
from .draw import DrawSettings
from .native_library import instruction_sets


class AttentionKernel(Protocol):
    """Attention of every token of a step to its own sequence's pages, which hold this step's keys and
    values."""

    def __call__(self, q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array: ...


class ExpertsKernel(Protocol):
    """`[T, D]`: the weighted sum of the outputs (SwiGLU) of each token's X experts.

    `expert_TX` i32 has their indices; E, the number of experts on this device, means none, costs nothing and
    adds zero. `weight_TX` is f32.
    """

    def __call__(
        self, x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: "ExpertWeights"
    ) -> jax.Array: ...


class LinearKernel(Protocol):
    """`x @ w` for each weight `[D, F]`, in f32.

    `rows`, i32 `[]`: only the first ones are needed, and the others may be zero; None for all. For the
    backend `native`, weights can be panels (see `panels.py`).
    """

    def __call__(
        self, x_TD: jax.Array, *weights: jax.Array, rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]: ...


class Int8LinearKernel(Protocol):
    """`x @ (w * scale)` for each int8 weight with its f32 scales; in f32; x is quantised to int8.

    `rows` as for `LinearKernel`. For the backend `transposed`, weights are `[F, D]`; for `native` they can be
    panels.
    """

    def __call__(
        self, x_TD: jax.Array, *weights: tuple[jax.Array, jax.Array], rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]: ...


class Fp8LinearKernel(Protocol):
    """`x @ (w * scale)` for each fp8 weight (e4m3) with its f32 scales, `[F]` or `[D/128, F]`; in f32.

    x is not rounded. `rows` as for `LinearKernel`. For the backend `native`, weights can be panels.
    """

    def __call__(
        self, x_TD: jax.Array, *weights: tuple[jax.Array, jax.Array], rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]: ...


class GroupedLinearKernel(Protocol):
    """`x @ w` for each weight in groups of 32 inputs (see `quantize.GroupedWeight`), in f32.

    x is quantised to int8 with a scale per row and group, except by `triton` and `unrounded`, where weights
    are rounded to x's type instead. `rows` as for `LinearKernel`. For the backend `native`, weights can be
    panels.
    """

    def __call__(
        self, x_TD: jax.Array, *weights: GroupedWeight, rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]: ...


class AdaptersKernel(Protocol):
    """Products f32 `[T, F]` of x, with `(x @ down) @ up` of each row's own adapter added, by one stack of
    adapters for each product (see `adapters.Stack`).

    `index_T` i32 is an adapter's place in the stacks; -1 means none and adds nothing. `rows` as for
    `LinearKernel`. For the backend `native`, stacks can be panels.
    """

    def __call__(
        self,
        x_TD: jax.Array,
        index_T: jax.Array,
        products: Sequence[jax.Array],
        stacks: Sequence[Stack],
        rows: jax.Array | None = None,
    ) -> Sequence[jax.Array]: ...


class NormKernel(Protocol):
    """Root-mean-square norm of each row (Zhang and Sennrich 2019, arXiv:1910.07467), times `scale_D`:
    computed in f32, returned in x's dtype."""

    def __call__(self, x_TD: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array: ...


class RowSumKernel(Protocol):
    """The sum of each row, f32 `[B]`."""

    def __call__(self, x_BV: jax.Array) -> jax.Array: ...


class DrawKernel(Protocol):
    """An id for each row, i32 `[B]`, drawn from its f32 logits as its settings say.

    An id with a logit of minus infinity is drawn only if there is no other.
    """

    def __call__(self, logits_BV: jax.Array, settings: DrawSettings) -> jax.Array: ...


class ZerosKernel(Protocol):
    """New arrays of these shapes and types, all zeros."""

    def __call__(self, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """The experts on this device: gate and up `[E, D, F]`, down `[E, F, D]`; if int8 or fp8, f32 scales
    `[E, outs]`, or of fp8 in blocks `[E, inputs / 128, outs]`.

    In groups each is a stack of the parts of a `quantize.GroupedWeight`, with scales and lows f16
    `[E, inputs / 32, outs]`; without lows the weights have 8 bits.

    If unstacked (see `sharding.unstack`), gate, up and down are E arrays of `[1, …]` each; those in groups
    or blocks are always stacked. For the backend `native` they can be panels (see `panels.py`); for `triton`
    int8 ones are `[E, outs, inputs]`.
    """

    gate: jax.Array | tuple[jax.Array, ...]
    up: jax.Array | tuple[jax.Array, ...]
    down: jax.Array | tuple[jax.Array, ...]
    gate_scale: jax.Array | None = None
    up_scale: jax.Array | None = None
    down_scale: jax.Array | None = None
    gate_low: jax.Array | None = None
    up_low: jax.Array | None = None
    down_low: jax.Array | None = None

    @property
    def grouped(self) -> bool:
        """Whether the weights are of integers in groups."""
        return self.gate_scale is not None and self.gate_scale.dtype == jnp.float16

    @property
    def fp8(self) -> bool:
        """Whether the weights are fp8."""
        first = self.gate[0] if isinstance(self.gate, tuple) else self.gate
        return first.dtype == jnp.float8_e4m3fn

    @property
    def count(self) -> int:
        """E."""
        return len(self.gate) if isinstance(self.gate, tuple) else self.gate.shape[0]


_BACKENDS: dict[str, dict[str, str]] = {
    "attention": {
        "blocks": "block_attention:attend",
        "ragged": "tpu.ragged_attention:attend",
        "triton": "gpu.triton_attention:attend",
        "native": "cpu.native_attention:attend",
    },
    "experts": {
        "blocks": "block_experts:block_experts",
        "ragged": "tpu.ragged_experts:ragged_experts",
        "triton": "gpu.triton_experts:triton_experts",
        "native": "cpu.native_experts:native_experts",
    },
    "linear": {
        "plain": "linear:plain",
        "split_k": "linear:split_k",
        "native": "cpu.native_linear:linear",
    },
    "int8_linear": {
        "plain": "linear:int8_plain",
        "padded": "linear:int8_padded",
        "transposed": "linear:int8_transposed",
        "native": "cpu.native_linear:int8_linear",
    },
    "fp8_linear": {
        "plain": "fp8:fp8_plain",
        "whole": "fp8:fp8_whole",
        "triton": "gpu.triton_fp8:fp8_linear",
        "native": "cpu.native_linear:fp8_linear",
    },
    "grouped_linear": {
        "plain": "linear:grouped_plain",
        "unrounded": "grouped:grouped_unrounded",
        "triton": "gpu.triton_grouped:grouped_linear",
        "native": "cpu.native_linear:grouped_linear",
    },
    "adapters": {
        "plain": "adapters:plain",
        "native": "cpu.native_adapters:adapters",
    },
    "rms_norm": {
        "plain": "rows:rms_norm",
        "native": "cpu.native_rows:rms_norm",
    },
    "row_sum": {
        "plain": "rows:row_sum",
        "native": "cpu.native_rows:row_sum",
    },
    "draw": {
        "plain": "draw:draw",
        "triton": "gpu.triton_draw:draw",
        "native": "cpu.native_draw:draw",
    },
    "zeros": {
        "plain": "zeros:zeros",
        "native": "cpu.native_zeros:zeros",
    },
}
"""Operation -> backend -> `module:function` in this folder; imported when chosen."""

_CHOICES: dict[str, dict[str, str]] = {
    "cpu": {"linear": "split_k", "int8_linear": "transposed"},
    "tpu": {
        "attention": "ragged",
        "experts": "ragged",
        "fp8_linear": "whole",
        "grouped_linear": "unrounded",
    },
    "cuda": {
        "attention": "triton",
        "experts": "triton",
        "int8_linear": "transposed",
        "fp8_linear": "triton",
        "grouped_linear": "triton",
        "draw": "triton",
    },
}
"""Platform -> operation -> backend, if it is not the first one."""

_PRECISIONS = {"cuda": "highest"}
"""JAX's default there is TF32, with 10 bits of a fraction instead of 23."""

_JOINED = {"cuda"}
"""Platforms that join linear maps of the same inputs into one weight."""

NATIVE = "native"
_NATIVE_CHOICES = {operation: NATIVE for operation, backends in _BACKENDS.items() if NATIVE in backends}
"""What a CPU gets where the native kernels were built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """One kernel for each operation.

    Attributes:
      names: the backends' names, for the log.
      precision: of products of f32 numbers, as in `jax.default_matmul_precision`; None for JAX's default.
      joined: linear maps of the same inputs have one weight (see `joining.py`).
    """

    attention: AttentionKernel
    experts: ExpertsKernel
    linear: LinearKernel
    int8_linear: Int8LinearKernel
    fp8_linear: Fp8LinearKernel
    grouped_linear: GroupedLinearKernel
    adapters: AdaptersKernel
    rms_norm: NormKernel
    row_sum: RowSumKernel
    draw: DrawKernel
    zeros: ZerosKernel
    names: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    precision: str | None = None
    joined: bool = False


def choose(platform: str, overrides: Mapping[str, str] | None = None) -> Kernels:
    """The kernels for a platform by JAX's name; an unknown platform gets the portable ones.

    Args:
      overrides: operation -> backend, instead of the default.

    Raises:
      ConfigError: the operation or the backend is unknown, or the native kernels are requested where they
        were not built.
    """
    names = {operation: next(iter(backends)) for operation, backends in _BACKENDS.items()}
    platform = "cuda" if platform == "gpu" else platform
    names |= _CHOICES.get(platform, {})
    if platform == "cpu" and instruction_sets():
        names |= _NATIVE_CHOICES
    for operation, backend in (overrides or {}).items():
        _check(operation, backend)
        names[operation] = backend
    functions = {operation: _load(_BACKENDS[operation][name]) for operation, name in names.items()}
    return Kernels(
        **functions,
        names=tuple(names.items()),
        precision=_PRECISIONS.get(platform),
        joined=platform in _JOINED,
    )


def _check(operation: str, backend: str) -> None:
    if operation not in _BACKENDS:
        raise ConfigError(f"kernel {operation}={backend}; expected an operation of {', '.join(_BACKENDS)}")
    if backend not in _BACKENDS[operation]:
        raise ConfigError(f"kernel {operation}={backend}; expected one of {', '.join(_BACKENDS[operation])}")
    if backend == NATIVE and not instruction_sets():
        raise ConfigError(
            f"kernel {operation}={backend}; expected another one, because the native kernels were not built: "
            "the installation found no C++ compiler"
        )


@cache
def _load(place: str) -> Any:
    module, _, function = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(f".{module}", __package__), function)
    return found
