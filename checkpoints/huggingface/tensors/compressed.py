"""compressed-tensors' `pack-quantized`: words of integers along the inputs.

A value of `weight_packed` i32 `[F, D * bits / 32]` is a signed integer plus half its range, the lowest bits
first. Scales are `[F, G]`, with one group if a scale belongs to an output. Zeros are signed too: packed in
words along the outputs, or int8 `[F, G]`, as early versions wrote them. The bytes of 4-bit words are those of
our own groups.
"""

from functools import partial

import numpy as np

from .integers import Integers, packed_bytes, unpack
from .shards import FLOATS, StoredTensor
from .weight import Module, PackedWeight, groups_of_inputs


def pack_quantized(module: Module) -> PackedWeight:
    """The weight of a module in this layout; reads no values.

    Raises:
      CheckpointError: a tensor is missing, or has another type or shape.
    """
    bits = module.scheme.bits
    words, scale = module.take("weight_packed", "I32"), module.take("weight_scale", *FLOATS)
    outputs, inputs = module.matrix(words)
    inputs = inputs * 32 // bits
    groups = module.groups(inputs)
    module.check(scale, (outputs, groups), *([] if module.scheme.group else [(1,)]))
    stored = [words, scale]
    if not module.scheme.symmetric:
        zero = module.take("weight_zero_point", "I32", "I8")
        module.check(zero, (-(-outputs * bits // 32), groups) if zero.kind == "I32" else (outputs, groups))
        stored.append(zero)
    if module.scheme.ordered:
        order = module.take("weight_g_idx", "I32", "I64")
        module.check(order, (inputs,))
        stored.append(order)
    load = partial(_read, module, outputs, groups)
    return module.packed((outputs, inputs), tuple(stored), load)


def _read(module: Module, outputs: int, groups: int) -> Integers:
    bits, parts = module.scheme.bits, module.parts
    scale = parts["weight_scale"].read_packed().astype(np.float32).reshape(-1, groups)
    scale_FG = np.broadcast_to(scale, (outputs, groups))
    zero_FG = np.full(scale_FG.shape, float(1 << (bits - 1)), np.float32)
    if not module.scheme.symmetric:
        zero_FG = _zeros(parts["weight_zero_point"], bits, outputs)
    group_D = groups_of_inputs(parts["weight_g_idx"], groups) if module.scheme.ordered else None
    q = packed_bytes(parts["weight_packed"].read_packed())
    return Integers(module.weight, bits, q, zero_FG, scale_FG, group_D)


def _zeros(stored: StoredTensor, bits: int, outputs: int) -> np.ndarray:
    """f32 `[F, G]`, counted like the packed values."""
    values = stored.read_packed()
    if stored.kind == "I8":
        return values.astype(np.float32) + (1 << (bits - 1))
    return unpack(values.T, bits).T[:outputs].astype(np.float32)
