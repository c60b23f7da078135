"""Which parameters of a quantised folder stay packed, their values, and what the log says of the others.

A parameter that several tensors make, such as the experts of a layer, is packed only if all of them are, and
alike. The one idea: what is not served as it is stored is said once, with what it costs.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np

from ....model.config import ModelConfig
from ....model.errors import ConfigError
from ....model.parameters import (
    Kind,
    Quantization,
    check_groups,
    combined,
    is_linear,
    kind_of,
    parameter_shapes,
    stored_type,
)
from ...errors import CheckpointError
from ...names import Origin
from ...notes import note
from .modules import Tensors
from .shards import StoredTensor
from .weight import PackedWeight

log = logging.getLogger(__name__)

Origins = Mapping[str, Origin]


def own_quantization(
    path: Path, config: ModelConfig, origins: Origins, tensors: Tensors, *, as_is: bool
) -> Quantization | None:
    """How the linear weights are served; None if all are wide, or cannot be packed.

    Raises:
      ConfigError: `as_is` is true, and a quantised weight cannot be served as it is stored.
    """
    kinds: dict[str, Kind | None] = {
        name: _kind_of(origin, tensors) for name, origin in origins.items() if is_linear(name)
    }
    found = combined(_alike(kinds) if config.moe else kinds)
    if as_is:
        _check_exact(path, origins, tensors)
    try:
        check_groups(config, found)
    except ConfigError as error:
        if as_is:
            raise
        note(f"{path}: quantised weights are widened: {error}")
        return None
    return found


def _alike(kinds: dict[str, Kind | None]) -> dict[str, Kind | None]:
    """The kinds if all experts of a layer are packed alike, or wide."""
    alike = dict(kinds)
    for block in [name.removesuffix("down") for name in kinds if name.endswith(".down")]:
        names = [block + part for part in ("gate", "up", "down")]
        if len({kinds[name] for name in names}) > 1:
            alike |= dict.fromkeys(names)
    return alike


def _kind_of(origin: Origin, tensors: Tensors) -> Kind | None:
    weights = [tensors[name] for name in origin.names]
    kinds: set[Kind | None] = {
        weight.kept_as if isinstance(weight, PackedWeight) else None for weight in weights
    }
    return kinds.pop() if len(kinds) == 1 else None


def packed_parts(name: str, origin: Origin, tensors: Tensors, kind: Kind) -> Iterator[tuple[str, np.ndarray]]:
    """A parameter and its scales, from packed weights that are all of this kind."""
    read: dict[str, tuple[np.ndarray, ...]] = {}
    for foreign in origin.names:
        weight = tensors[foreign]
        assert isinstance(weight, PackedWeight)
        read[foreign] = weight.load().parts(kind)
    for i in range(len(read[origin.names[0]])):
        yield name + ("", "_scale", "_low")[i], origin.assemble(lambda foreign, i=i: read[foreign][i])


def bytes_as_read(
    config: ModelConfig, origins: Origins, tensors: Tensors, quantization: Quantization | None
) -> int:
    """The bytes of all parameters: packed, as stored, or widened to f32."""
    packed = {
        foreign
        for name, origin in origins.items()
        if is_linear(name) and kind_of(name, quantization)
        for foreign in origin.names
    }
    parts = (
        prod(shape) * np.dtype(kept).itemsize
        for name, shape in parameter_shapes(config, quantization).items()
        if (kept := stored_type(name, quantization))
    )
    return sum(parts) + sum(tensor.nbytes for name, tensor in tensors.items() if name not in packed)


def spare_biases(extra: Iterable[str], tensors: Tensors) -> dict[str, StoredTensor]:
    """Those biases of quantised weights that the model does not have: AutoGPTQ writes zeros for them."""
    found: dict[str, StoredTensor] = {}
    for name in extra:
        tensor, weight = tensors[name], tensors.get(name.removesuffix("bias") + "weight")
        if name.endswith(".bias") and isinstance(weight, PackedWeight) and isinstance(tensor, StoredTensor):
            found[name] = tensor
    return found


def check_zero(biases: Iterable[StoredTensor]) -> None:
    """Raises CheckpointError if one of these biases is not zero."""
    for bias in biases:
        if bias.read().any():
            raise CheckpointError(
                f"{bias.file}: tensor {bias.name} is not zero; expected zeros, as the model has no such bias"
            )


def _check_exact(path: Path, origins: Origins, tensors: Tensors) -> None:
    for weight in _packed(origins, tensors):
        if weight.kept_as is None or not weight.exact:
            what = "fp8" if weight.scheme.floating else f"integers of {weight.scheme.bits} bits"
            raise ConfigError(
                f"{path}: {weight.name} has {what} that cannot be kept as they are; expected --quantize none"
            )


def report(path: Path, origins: Origins, tensors: Tensors, quantization: Quantization | None) -> None:
    """Logs what is not served as it is stored: weights that are widened or rounded, activations' scales."""
    kinds = {name: kind_of(name, quantization) for name in origins if is_linear(name)}
    widened = list(_packed({name: origins[name] for name, kind in kinds.items() if not kind}, tensors))
    kept = list(_packed({name: origins[name] for name, kind in kinds.items() if kind}, tensors))
    if widened:
        _log(path, widened, "are widened", _bytes(4 * weight.values for weight in widened) + " in float32")
    if rounded := [weight for weight in kept if not weight.exact]:
        why = (
            "have groups of inputs that are not consecutive, or zeros of 8 bits: rounded to groups of 8 bits"
        )
        _log(path, rounded, why, _bytes(weight.values * 34 // 32 for weight in rounded))
    if any(weight.scheme.static or weight.scheme.shifted for weight in (*kept, *widened)):
        rounded = any(not weight.scheme.floating for weight in kept)
        how = "rounded with scales of their own, without zeros" if rounded else "not rounded"
        log.info("%s: activations are %s; stored scales are not used", path.name, how)


def _log(path: Path, weights: list[PackedWeight], what: str, cost: str) -> None:
    stored = _bytes(weight.stored_bytes for weight in weights)
    log.info("%s: %d quantised weights %s: %s, not %s", path.name, len(weights), what, cost, stored)


def _packed(origins: Origins, tensors: Tensors) -> Iterator[PackedWeight]:
    """The quantised weights of these parameters; one that two of them share counts once."""
    names = dict.fromkeys(name for origin in origins.values() for name in origin.names)
    return (weight for name in names if isinstance(weight := tensors[name], PackedWeight))


def _bytes(sizes: Iterable[int]) -> str:
    return f"{sum(sizes):,} bytes"
