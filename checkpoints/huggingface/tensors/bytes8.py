"""Weights of one byte: int8 and fp8, `[F, D]` as they are, times their scales.

int8 with a scale for each output (compressed-tensors' w8a8) is our `int8`: activations are rounded with one
scale per token there too, computed and not stored. If activations are not quantised, or a scale belongs to a
group, it becomes groups of 8 bits. fp8 stays fp8: a scale belongs to a weight, an output or a block, and is
repeated for each output, or for each output and 128 inputs. Whether activations are rounded to fp8 as well,
and with which scale, is not followed: here they are not rounded.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from ....model.errors import ConfigError
from ....model.parameters import BLOCK, FP8, FP8_BLOCKS, GROUP, INT8, INT8_GROUPS, Kind
from .integers import inputs_first, rounded_in_groups
from .shards import FLOATS, StoredTensor
from .weight import Module, PackedWeight

_FP8_SCALES = ("weight_scale_inv", "weight_scale")
"""Their names: both are factors of the values."""


@dataclass(frozen=True, slots=True)
class ScaledBytes:
    """A weight `[F, D]`, int8 or fp8, of which a scale f32 belongs to a block of outputs and inputs."""

    q: np.ndarray
    scale: np.ndarray
    block: tuple[int, int]

    def wide(self) -> np.ndarray:
        """f32 `[F, D]`."""
        outputs, inputs = self.q.shape
        scale = np.repeat(self.scale, self.block[0], axis=0)[:outputs]
        return self.q.astype(np.float32) * np.repeat(scale, self.block[1], axis=1)[:, :inputs]

    def parts(self, kind: Kind) -> tuple[np.ndarray, ...]:
        """See `integers.Values`."""
        outputs, inputs = self.q.shape
        scale = np.repeat(self.scale, self.block[0], axis=0)[:outputs]
        if kind in (INT8, FP8):
            return inputs_first(self.q), scale[:, 0]
        if kind == FP8_BLOCKS:
            return inputs_first(self.q), np.repeat(scale, self.block[1] // BLOCK, axis=1)[
                :, : inputs // BLOCK
            ]
        halves = np.repeat(scale.astype(np.float16), self.block[1] // GROUP, axis=1)
        return (inputs_first(self.q), halves) if np.isfinite(halves).all() else rounded_in_groups(self.wide())


def int8(module: Module) -> PackedWeight:
    """A weight of int8; reads no values.

    Raises:
      CheckpointError: a tensor is missing, or has another type or shape.
      ConfigError: there are zeros.
    """
    weight, scheme = module.take("weight", "I8"), module.scheme
    if not scheme.symmetric:
        raise ConfigError(
            f"{module.file}: {module.stem} has int8 weights with zeros; expected symmetric ones"
        )
    scale, block = _scale(module, weight, "weight_scale")
    grouped = block[1] < weight.shape[1] or not scheme.activations
    kind = (None if block[1] % GROUP else INT8_GROUPS) if grouped else INT8
    load = partial(_read, weight, scale, block)
    return PackedWeight(module.weight, weight.shape, scheme, (weight, scale), kind, True, load)


def fp8(module: Module) -> PackedWeight:
    """A weight of fp8; reads no values. e5m2, and blocks other than of 128 inputs or a multiple, can only be
    widened.

    Raises:
      CheckpointError: a tensor is missing, or has another type or shape.
    """
    weight = module.take("weight", "F8_E4M3", "F8_E5M2")
    names = [name for name in _FP8_SCALES if name in module.parts] or [" or ".join(_FP8_SCALES)]
    scale, block = _scale(module, weight, names[0])
    load = partial(_read, weight, scale, block)
    kept = weight.kind == "F8_E4M3" and (module.scheme.kind == FP8 or weight.shape[1] % BLOCK == 0)
    kind = module.scheme.kind if kept else None
    return PackedWeight(module.weight, weight.shape, module.scheme, (weight, scale), kind, True, load)


def _scale(module: Module, weight: StoredTensor, name: str) -> tuple[StoredTensor, tuple[int, int]]:
    """The scales, checked, and the outputs and inputs that share one."""
    scale = module.take(name, *FLOATS, "F8_E8M0")
    outputs, inputs = module.matrix(weight)
    if module.scheme.block:
        block = module.scheme.block
        module.check(scale, (-(-outputs // block[0]), -(-inputs // block[1])))
    elif module.scheme.group:
        block = (1, module.scheme.group)
        module.check(scale, (outputs, module.groups(inputs)))
    else:
        module.check(scale, (), (1,), (1, 1), (outputs,), (outputs, 1))
        block = (1 if scale.shape[:1] == (outputs,) else outputs, inputs)
    return scale, block


def _read(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int]) -> ScaledBytes:
    scales = scale.read_packed().astype(np.float32)
    rows = -(-weight.shape[0] // block[0])
    return ScaledBytes(weight.read_packed(), scales.reshape(rows, -1), block)
