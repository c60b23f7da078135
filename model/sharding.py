"""How a model is sharded over several devices: one mesh axis, one table, a few collectives.

Tensor parallelism in Megatron's form (Shoeybi et al. 2019, arXiv:1909.08053). Every device runs the same step
on its share: some whole heads with their part of the cache, some columns of the feed-forward or some whole
experts, and some rows of the vocabulary. The step is written once, for one share, and mapped over the mesh.
Devices communicate only through `psum` and `all_gather`: two sums per layer, one for the embedding, and one
gather of the logits.

The one idea: a model is padded before it is placed. `pad_config` returns sizes that divide evenly; the
padding is zero and comes last, and key/value heads are repeated if there are fewer of them than devices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .config import ModelConfig
from .errors import ConfigError
from .parameters import (
    Quantization,
    check_groups,
    has_scales_by_input,
    has_whole_experts,
    kind_of,
    parameter_shapes,
)

AXIS = "model"
"""The name of the mesh's one axis."""

REPLICATED = P()
CACHE = P(None, None, AXIS)
"""Pools `[P, page, 2K, H]`, and their scales: each device holds its heads of every page."""

_AXES = {
    "embed": -2,  # rows of the vocabulary; the sum of all devices' rows is the embedding
    "head": -1,  # columns of the vocabulary
    "attention.q": -1,  # whole heads
    "attention.k": -1,
    "attention.v": -1,
    "attention.o": -2,  # the same heads' rows: partial sums
    "feed_forward.gate": -1,
    "feed_forward.up": -1,
    "feed_forward.down": -2,  # partial sums
}
"""The axis that is divided, by weight, counted from the end. A bias or scale belongs to the outputs: it is
divided if they are. Parameters that are not listed are whole on every device."""


def create_mesh(shards: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The first `shards` of the devices (None: all that JAX sees) in one row.

    Raises:
      ConfigError: there are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) < shards:
        raise ConfigError(
            f"mesh model={shards}; expected at most {len(devices)}, the {devices[0].platform} devices here"
        )
    return Mesh(np.array(devices[:shards]), (AXIS,), axis_types=(AxisType.Auto,))


def pad_config(config: ModelConfig, shards: int) -> ModelConfig:
    """The sizes with which a model divides evenly among `shards` devices; unchanged if it already does.

    Key/value heads are repeated if their number divides the number of devices and that divides the number of
    query heads; otherwise groups of zero heads are appended.
    """
    heads, kv_heads = config.heads, config.kv_heads
    if copies(config, shards) > 1:
        kv_heads = shards
    elif kv_heads % shards:
        kv_heads = _multiple(kv_heads, shards)
        heads = kv_heads * (config.heads // config.kv_heads)
    return replace(
        config,
        vocabulary=_multiple(config.vocabulary, shards),
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=config.feed_forward
        if has_whole_experts(config, shards)
        else _multiple(config.feed_forward, shards),
    )


def share_config(config: ModelConfig, shards: int) -> ModelConfig:
    """One device's share of the heads, and so of the cache."""
    padded = pad_config(config, shards)
    return replace(padded, heads=padded.heads // shards, kv_heads=padded.kv_heads // shards)


def copies(config: ModelConfig, shards: int) -> int:
    """The number of devices that hold each key/value head."""
    divides = shards % config.kv_heads == 0 and config.heads % shards == 0
    return shards // config.kv_heads if divides else 1


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


@dataclass(frozen=True, slots=True)
class Placement:
    """How one parameter is placed.

    Attributes:
      shape: over all devices, including padding and copies. axis: the divided axis; None: whole everywhere.
      copies: the number of neighbouring devices that hold the same share.
    """

    shape: tuple[int, ...]
    axis: int | None
    copies: int = 1

    @property
    def spec(self) -> P:
        """As a JAX partition spec."""
        return P() if self.axis is None else P(*[None] * self.axis, AXIS)

    def transposed(self) -> "Placement":
        """The placement of the parameter with its last two axes exchanged."""
        *before, inputs, outputs = range(len(self.shape))
        axes = [*before, outputs, inputs]
        axis = None if self.axis is None else axes.index(self.axis)
        return replace(self, shape=tuple(self.shape[old] for old in axes), axis=axis)

    def share(self, values: np.ndarray, device: int, shards: int) -> np.ndarray:
        """The part of a whole, unpadded parameter that the `device`-th of `shards` devices holds."""
        if self.axis is None:
            return values
        size = self.shape[self.axis] // shards
        start = device // self.copies * size
        part = values[(slice(None),) * self.axis + (slice(start, start + size),)]
        missing = [(0, 0)] * part.ndim
        missing[self.axis] = (0, size - part.shape[self.axis])
        return np.pad(part, missing) if missing[self.axis][1] else part


def placements(
    config: ModelConfig, shards: int, quantization: Quantization | None = None
) -> dict[str, Placement]:
    """Each parameter's placement, by name, in `parameter_shapes` order.

    Raises:
      ConfigError: a device's inputs of some linear map are no whole groups or blocks.
    """
    padded, repeated = pad_config(config, shards), copies(config, shards)
    check_groups(padded, quantization, shards)
    found = {}
    for name, shape in parameter_shapes(padded, quantization).items():
        weight = _weight(name)
        grouped = has_scales_by_input(kind_of(name, quantization)) and not name.endswith("_bias")
        like = weight if grouped else name
        axis = None if shards == 1 else _divided(weight, like, len(shape), config, shards)
        found[name] = Placement(shape, axis, repeated if weight in ("attention.k", "attention.v") else 1)
    return found


def _weight(name: str) -> str:
    """A parameter's name without its layer; for a bias or a scale, the name of its weight."""
    inner = name.split(".", 2)[2] if name.startswith("layers.") else name
    return inner.removesuffix("_bias").removesuffix("_scale").removesuffix("_low")


def _divided(weight: str, name: str, rank: int, config: ModelConfig, shards: int) -> int | None:
    """The axis of a parameter that is divided; scales of groups are divided like their weight."""
    axis = _AXES.get(weight)
    if axis is None:
        return None
    if weight.startswith("feed_forward.") and has_whole_experts(config, shards):
        return 0
    if not name.endswith(weight) and axis == -2:  # the bias or scale of outputs that are whole
        return None
    return rank + axis


def divided_axis(name: str, rank: int, config: ModelConfig) -> int | None:
    """The axis of a parameter that most meshes divide; None if no mesh divides it.

    Experts stay whole on any number of devices that divides their number.
    """
    axis = _AXES.get(_weight(name))
    if axis is None or name.endswith(("_bias", "_scale", "_low")):
        return None
    return 0 if config.moe is not None and "feed_forward." in name else rank + axis


def place(values: np.ndarray, placement: Placement, mesh: Mesh) -> jax.Array:
    """Puts a whole, unpadded parameter on the mesh; each device receives its own share."""
    sharding = NamedSharding(mesh, placement.spec)
    if mesh.size == 1:
        return jax.device_put(values, mesh.devices.flat[0])

    def share(index: tuple[slice, ...] | None) -> np.ndarray:
        if placement.axis is None or index is None:
            return values
        start = index[placement.axis].start or 0
        return placement.share(values, start * mesh.size // placement.shape[placement.axis], mesh.size)

    return jax.make_array_from_callback(placement.shape, sharding, share)


def place_all(
    parameters: Mapping[str, jax.Array],
    config: ModelConfig,
    mesh: Mesh,
    quantization: Quantization | None = None,
) -> dict[str, jax.Array]:
    """Puts whole parameters on the mesh: for tests and small models."""
    table = placements(config, mesh.size, quantization)
    return {name: place(np.asarray(parameters[name]), where, mesh) for name, where in table.items()}


def unstack(stacked: jax.Array) -> tuple[jax.Array, ...]:
    """A layer's experts, `[E, …]` in CPU memory, as one array per expert, without a copy.

    On a CPU a product with one of several stacked weights copies that weight first. The i-th array holds each
    device's i-th expert, `[1, …]` there; it keeps the stacked array alive.
    """
    parts = [(shard.device, np.asarray(shard.data)) for shard in stacked.addressable_shards]
    count = len(parts[0][1])
    shape = (stacked.shape[0] // count, *stacked.shape[1:])

    def array(i: int) -> jax.Array:
        own = [jax.device_put(experts[i : i + 1], device) for device, experts in parts]
        return jax.make_array_from_single_device_arrays(shape, stacked.sharding, own)

    return tuple(map(array, range(count)))


def over_shares(
    function: Callable[..., Any], mesh: Mesh | AbstractMesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Maps a function of one device's share over the mesh; the function itself on a mesh of one."""
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def psum(x: jax.Array, shards: int) -> jax.Array:
    """The sum of all devices' partial sums."""
    return x if shards == 1 else lax.psum(x, AXIS)


def all_gather(x_BV: jax.Array, shards: int) -> jax.Array:
    """The columns of all devices, concatenated."""
    return x_BV if shards == 1 else lax.all_gather(x_BV, AXIS, axis=1, tiled=True)


def first_of_share(size: int, shards: int) -> jax.Array | int:
    """The index over all devices of the first of this device's `size` items; i32 `[]`."""
    return 0 if shards == 1 else lax.axis_index(AXIS).astype(jnp.int32) * size
