"""The small parts of a Llama layer: linear maps and SwiGLU.

Weights are `[inputs, outputs]` and applied as `x @ w`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx

from .config import ModelConfig
from .joining import JOINED, parts_of
from .lora import Lora
from .parameters import Kind, is_fp8, is_grouped, kind_of
from .quantize import GroupedWeight, quantize_linear
from .sharding import pad_config, psum
from .target import Target


@cache
def _quantized_shapes(name: str, weight: jax.ShapeDtypeStruct, kind: Kind) -> dict[str, jax.ShapeDtypeStruct]:
    """The parts of a quantised weight of this shape. Tracing them for each layer would take seconds."""
    return jax.eval_shape(partial(quantize_linear, name, kind=kind), weight)


class Linears(nnx.Module):
    """A module with linear maps: `add("q", …)` adds the weight `q` and, if needed, `q_bias` and `q_scale`.

    On a mesh each device holds some of a map's outputs (`columns`) or some of its inputs (`rows`);
    `sharding.py` lists which.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: jnp.dtype,
        bias: bool = False,
    ) -> None:
        """Adds a map of `[…, inputs, outputs]`, its shapes only."""
        kind, weight = self.kind(name), jax.ShapeDtypeStruct(shape, dtype)
        parts = _quantized_shapes(name, weight, kind) if kind else {name: weight}
        for part, values in parts.items():
            setattr(self, part, nnx.Param(values))
        if bias:
            setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(shape[-1:], dtype)))

    def kind(self, name: str) -> Kind | None:
        """How a map's weight is quantised; the parts of a joined weight are all of one kind."""
        return kind_of(parts_of(name)[0], self.target.quantization)

    def add_columns(
        self,
        inputs: int,
        outputs: Mapping[str, int],
        *,
        dtype: jnp.dtype,
        bias: bool = False,
    ) -> None:
        """Adds maps of the same inputs, with these numbers of outputs, for `columns`; as one weight if
        the target's are joined."""
        sizes = {JOINED[tuple(outputs)]: sum(outputs.values())} if self._joins(outputs) else outputs
        for name, size in sizes.items():
            self.add(name, (inputs, size), dtype=dtype, bias=bias)

    def _joins(self, names: Iterable[str]) -> bool:
        """Whether these maps have one weight: if the platform's do, and they are of one kind."""
        return self.target.kernels.joined and len(set(map(self.kind, names))) == 1

    def columns(
        self, x_TD: jax.Array, tokens: jax.Array, outputs: Mapping[str, int], lora: Lora | None = None
    ) -> tuple[jax.Array, ...]:
        """This device's outputs `[T, F]` of each map, for complete inputs; only the first `tokens` count.

        outputs: the maps that `add_columns` has added, with the number F on this device.
        lora: the adapters of this module.
        """
        joined = self._joins(outputs)
        names = (JOINED[tuple(outputs)],) if joined else tuple(outputs)
        products = (y_TF.astype(x_TD.dtype) for y_TF in self.products(x_TD, tokens, *names, lora=lora))
        found = tuple(map(self._biased, names, products))
        if not joined:
            return found
        *ends, _ = accumulate(outputs.values())
        return tuple(jnp.split(found[0], ends, axis=1))

    def rows(self, x_TF: jax.Array, tokens: jax.Array, name: str, lora: Lora | None = None) -> jax.Array:
        """All outputs `[T, D]`: the sum of the devices' products with their own inputs; only the first
        `tokens` count."""
        (product_TD,) = self.products(x_TF, tokens, name, lora=lora)
        return self._biased(name, psum(product_TD.astype(x_TF.dtype), self.target.shards))

    def products(
        self, x_TD: jax.Array, rows: jax.Array | None, *names: str, lora: Lora | None = None
    ) -> tuple[jax.Array, ...]:
        """This device's product with each map's weight, without bias, in f32; only the first `rows` count.

        Maps of one kind share a call of a kernel, and all of them one for adapters.
        """
        found: dict[str, jax.Array] = {}
        for kind in dict.fromkeys(map(self.kind, names)):
            alike = [name for name in names if self.kind(name) == kind]
            found |= zip(alike, self._products_of_a_kind(x_TD, rows, alike), strict=True)
        if lora is not None:
            self._adapt(x_TD, rows, found, lora)
        return tuple(found[name] for name in names)

    def _adapt(
        self, x_TD: jax.Array, rows: jax.Array | None, found: dict[str, jax.Array], lora: Lora
    ) -> None:
        """Adds the products with the tokens' adapters; those of joined maps lie one after another."""
        parts = {name: parts_of(name) for name in found}
        stacks = [lora.stacks[part] for own in parts.values() for part in own]
        products: list[jax.Array] = []
        for name, own in parts.items():
            ends = list(accumulate(lora.outputs(part) for part in own))[:-1]
            products += jnp.split(found[name], ends, axis=1) if ends else [found[name]]
        adapted = iter(self.target.kernels.adapters(x_TD, lora.index_T, products, stacks, rows))
        for name, own in parts.items():
            each = [next(adapted) for _ in own]
            found[name] = each[0] if len(each) == 1 else jnp.concatenate(each, axis=1)

    def _products_of_a_kind(
        self, x_TD: jax.Array, rows: jax.Array | None, names: Sequence[str]
    ) -> tuple[jax.Array, ...]:
        kind = self.kind(names[0])
        kernels = self.target.kernels
        if is_grouped(kind):
            return kernels.grouped_linear(x_TD, *map(self.grouped, names), rows=rows)
        weights = [getattr(self, name)[...] for name in names]
        if kind:
            scales = [getattr(self, f"{name}_scale")[...] for name in names]
            product = kernels.fp8_linear if is_fp8(kind) else kernels.int8_linear
            return product(x_TD, *zip(weights, scales, strict=True), rows=rows)
        return kernels.linear(x_TD, *weights, rows=rows)

    def grouped(self, name: str) -> GroupedWeight:
        """This device's share of a weight in groups."""
        low = getattr(self, f"{name}_low", None)
        return (
            getattr(self, name)[...],
            getattr(self, f"{name}_scale")[...],
            None if low is None else low[...],
        )

    def _biased(self, name: str, y_TF: jax.Array) -> jax.Array:
        bias = getattr(self, f"{name}_bias", None)
        return y_TF if bias is None else y_TF + bias[...][None, :]


class FeedForward(Linears):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): `(silu(x @ gate) * (x @ up)) @ down`."""

    def __init__(self, config: ModelConfig, target: Target, *, dtype: jnp.dtype) -> None:
        super().__init__(target)
        width, inner, bias = config.width, config.feed_forward, config.feed_forward_bias
        self.add_columns(width, {"gate": inner, "up": inner}, dtype=dtype, bias=bias)
        self.add("down", (inner, width), dtype=dtype, bias=bias)
        self.inner = pad_config(config, target.shards).feed_forward // target.shards

    def __call__(self, x_TD: jax.Array, tokens: jax.Array, lora: Lora | None = None) -> jax.Array:
        """Maps `[T, D]` to `[T, D]`; only the first `tokens` count. `lora`: the adapters of its maps."""
        gate_TF, up_TF = self.columns(x_TD, tokens, {"gate": self.inner, "up": self.inner}, lora)
        return self.rows(jax.nn.silu(gate_TF) * up_TF, tokens, "down", lora)
