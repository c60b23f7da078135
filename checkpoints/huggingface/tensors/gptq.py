"""GPTQ's layout, of AutoGPTQ and GPTQModel: words of integers along the inputs, inputs first.

`qweight` i32 `[D * bits / 32, F]`, `scales` `[G, F]`, `qzeros` i32 `[G, F * bits / 32]`, all with the lowest
bits first. The first format stores zeros less 1 (`Scheme.zero_offset`). `g_idx` has each input's group; with
`desc_act` the inputs of a group are not consecutive.
"""

from functools import partial

import numpy as np

from ...errors import CheckpointError
from .integers import Integers, packed_rows, unpack
from .shards import FLOATS
from .weight import Module, PackedWeight, groups_of_inputs


def gptq(module: Module) -> PackedWeight:
    """The weight of a module in this layout; reads no values.

    Raises:
      CheckpointError: a tensor is missing, or has another type or shape.
    """
    bits = module.scheme.bits
    words, scale = module.take("qweight", "I32"), module.take("scales", *FLOATS)
    zero = module.take("qzeros", "I32")
    inputs, outputs = module.matrix(words)
    inputs = inputs * 32 // bits
    groups = module.groups(inputs)
    module.check(scale, (groups, outputs))
    module.check(zero, (groups, outputs * bits // 32))
    stored = [words, scale, zero]
    if module.scheme.ordered or "g_idx" in module.parts:
        order = module.take("g_idx", "I32", "I64")
        module.check(order, (inputs,))
        stored.append(order)
    return module.packed((outputs, inputs), tuple(stored), partial(_read, module, groups))


def _read(module: Module, groups: int) -> Integers:
    bits, parts = module.scheme.bits, module.parts
    scale_FG = parts["scales"].read_packed().astype(np.float32).T
    zero_FG = unpack(parts["qzeros"].read_packed(), bits).astype(np.float32).T + module.scheme.zero_offset
    q = packed_rows(parts["qweight"].read_packed()).T
    group_D = groups_of_inputs(parts["g_idx"], groups) if "g_idx" in parts else None
    if group_D is not None and not module.scheme.ordered:
        if (group_D != np.arange(len(group_D)) * groups // len(group_D)).any():
            raise CheckpointError(
                f"{module.file}: tensor {module.stem}.g_idx is not in order; expected desc_act to be true"
            )
    if groups == 1 or not module.scheme.ordered:
        group_D = None
    return Integers(module.weight, bits, q, zero_FG, scale_FG, group_D)
