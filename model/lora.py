"""LoRA adapters on the device: stacks of low-rank maps, from which each token takes its own adapter's.

The shapes are fixed when the engine is built: a number of adapters and a largest rank. So an adapter is
loaded by writing its part of the stacks, without a compilation; smaller ranks are padded with zeros. On a
mesh a stack is divided as the map's weight is: by outputs of the second factor, or inputs of the first one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .adapter import Adapter, LowRank
from .config import ModelConfig
from .errors import DistaffError
from .kernels.adapters import Stack
from .kernels.panels import PANEL
from .kernels.registry import NATIVE
from .parameters import is_linear, parameter_shapes
from .sharding import Placement, place, placements
from .target import Target

NARROW = 16
"""Outputs of a panel of a first factor."""

Stacks = dict[str, Stack]
"""Stacks by the names of the maps' weights."""


class InvalidAdapter(DistaffError):
    """An adapter that does not belong to the model, or does not fit into the stacks."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapters of a step's tokens.

    Attributes:
      index_T: i32 `[T]`, each token's adapter in the stacks; -1: none.
      stacks: those of a model or of one of its modules, by the weights' names there.
    """

    index_T: jax.Array
    stacks: Stacks

    def within(self, place: str) -> "Lora | None":
        """The same for a module, such as `layers.0`; None if it has no maps with adapters."""
        start = f"{place}."
        inner = {n.removeprefix(start): s for n, s in self.stacks.items() if n.startswith(start)}
        return Lora(index_T=self.index_T, stacks=inner) if inner else None

    def outputs(self, name: str) -> int:
        """The outputs of a map on this device, if its stack is not in panels."""
        return self.stacks[name][1].shape[-1]

    def of_rows(self, place_B: jax.Array) -> "Lora":
        """The same for some of the tokens; -1 for places behind the last one."""
        index_B = self.index_T.at[place_B].get(mode="fill", fill_value=-1)
        return Lora(index_T=index_B, stacks=self.stacks)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterShapes:
    """The sizes of the stacks, and how adapters are laid out for them.

    Attributes:
      count: S, adapters on the device. rank: R, the largest. target: what the model is built for.
      dtype: of the computation. Factors have it too, or bf16 if the weights are quantised, and less exact.
    """

    config: ModelConfig
    target: Target
    count: int
    rank: int
    dtype: jnp.dtype

    def names(self) -> list[str]:
        """The maps that can have an adapter: all linear ones, except experts; the head also if it is tied."""
        shapes = parameter_shapes(self.config)
        found = [name for name, shape in shapes.items() if is_linear(name) and len(shape) == 2]
        return found if "head" in found else [*found, "head"]

    def check(self, adapter: Adapter) -> None:
        """Checks that an adapter belongs to the model and fits.

        Raises:
          InvalidAdapter: it does not.
        """
        if adapter.rank > self.rank:
            raise InvalidAdapter(f"the adapter's rank is {adapter.rank}; expected at most {self.rank}")
        known = set(self.names())
        for name, (down, up) in adapter.weights.items():
            if name not in known:
                raise InvalidAdapter(f"the adapter changes {name}; expected only linear maps, no experts")
            inputs, outputs = self._sizes(name)
            r = down.shape[-1]
            if down.shape != (inputs, r) or up.shape != (r, outputs) or r > adapter.rank:
                raise InvalidAdapter(
                    f"the adapter's factors of {name} are {list(down.shape)} and {list(up.shape)}; expected "
                    f"[{inputs}, r] and [r, {outputs}] with r up to {adapter.rank}"
                )

    def lay_out(self, adapter: Adapter) -> dict[str, LowRank]:
        """The adapter's factors as they lie in the stacks, on the host: those of all maps, padded."""
        return {name: self._factors(name, adapter.weights.get(name)) for name in self.names()}

    def put(
        self, adapter: Mapping[str, LowRank], names: frozenset[str], mesh: Mesh
    ) -> dict[str, tuple[jax.Array, jax.Array, np.int32]]:
        """A laid out adapter on the mesh, as stacks without their first axis; `names`: of its maps."""
        table = self._placements()
        return {
            name: (
                place(down, table[name][0], mesh),
                place(up, table[name][1], mesh),
                np.int32(name in names),
            )
            for name, (down, up) in adapter.items()
        }

    def abstract(self) -> Stacks:
        """The shapes and types of the stacks, over all devices."""
        return {
            name: (
                jax.ShapeDtypeStruct((self.count, *down.shape), self.stored),
                jax.ShapeDtypeStruct((self.count, *up.shape), self.stored),
                jax.ShapeDtypeStruct((self.count,), jnp.int32),
            )
            for name, (down, up) in self._placements().items()
        }  # type: ignore[return-value] - shapes in place of arrays

    def specs(self) -> dict[str, tuple[P, P, P]]:
        """How the stacks are divided among devices."""
        return {
            name: (P(None, *down.spec), P(None, *up.spec), P())
            for name, (down, up) in self._placements().items()
        }

    @property
    def nbytes(self) -> int:
        """Of the stacks on each device, at most."""
        found = 0
        for down, up in self._placements().values():
            for where in (down, up):
                shards = 1 if where.axis is None else self.target.shards
                found += self.count * int(np.prod(where.shape)) * self.stored.itemsize // shards
        return found

    @property
    def stored(self) -> jnp.dtype:
        """The type of the factors."""
        return self.dtype if self.target.quantization is None else jnp.dtype("bfloat16")

    @property
    def in_panels(self) -> bool:
        """Whether the stacks are panels for the native kernels."""
        native = dict(self.target.kernels.names)["adapters"] == NATIVE
        return native and self.target.shards == 1 and self.dtype == jnp.float32

    def _sizes(self, name: str) -> tuple[int, int]:
        if name == "head":
            return self.config.width, self.config.vocabulary
        inputs, outputs = parameter_shapes(self.config)[name]
        return inputs, outputs

    def _placements(self) -> dict[str, tuple[Placement, Placement]]:
        """Of both factors of each map; panels are on a single device."""
        table, found = placements(self.config, self.target.shards), {}
        for name in self.names():
            weight = table.get(name) or table["embed"].transposed()
            inputs, outputs = weight.shape
            if self.in_panels:
                narrow = -(-self.rank // NARROW)
                down = (narrow, inputs, NARROW)
                up = (-(-outputs // PANEL), narrow * NARROW, PANEL)
                found[name] = Placement(down, None), Placement(up, None)
                continue
            axis, copies = weight.axis, weight.copies
            down = Placement((inputs, self.rank), 0 if axis == 0 else None, copies if axis == 0 else 1)
            up = Placement((self.rank, outputs), 1 if axis == 1 else None, copies if axis == 1 else 1)
            found[name] = down, up
        return found

    def _factors(self, name: str, factors: LowRank | None) -> LowRank:
        inputs, outputs = self._sizes(name)
        down, up = np.zeros((inputs, self.rank), np.float32), np.zeros((self.rank, outputs), np.float32)
        if factors is not None:
            rank = factors[0].shape[1]
            down[:, :rank], up[:rank] = factors
        if self.in_panels:
            up = np.pad(up, ((0, -self.rank % NARROW), (0, 0)))
            down, up = _panels(down, NARROW), _panels(up, PANEL)
        return down.astype(self.stored), up.astype(self.stored)


def create_stacks(shapes: AdapterShapes, mesh: Mesh) -> Stacks:
    """Stacks without adapters, on the mesh."""
    where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), shapes.specs())
    zeros = jax.jit(
        lambda: jax.tree.map(lambda stack: jnp.zeros(stack.shape, stack.dtype), shapes.abstract()),
        out_shardings=where,
    )
    return zeros()


def _panels(w_DF: np.ndarray, width: int) -> np.ndarray:
    """`[D, F]` as `[F / width, D, width]`, with zeros after the last output."""
    padded = np.pad(w_DF, ((0, 0), (0, -w_DF.shape[1] % width)))
    return np.ascontiguousarray(padded.reshape(len(w_DF), -1, width).swapaxes(0, 1))
