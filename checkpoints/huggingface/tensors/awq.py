"""AWQ's layout `gemm`, of AutoAWQ: words of eight integers along the outputs, inputs first.

`qweight` i32 `[D, F / 8]`, `qzeros` i32 `[G, F / 8]`, `scales` `[G, F]`. The eight values of a word, from the
lowest bits on, are those of outputs 0, 2, 4, 6, 1, 3, 5 and 7.
"""

from functools import partial

import numpy as np

from .integers import Integers
from .shards import FLOATS
from .weight import Module, PackedWeight

_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_gemm(module: Module) -> PackedWeight:
    """The weight of a module in this layout; reads no values.

    Raises:
      CheckpointError: a tensor is missing, or has another type or shape.
    """
    words, scale = module.take("qweight", "I32"), module.take("scales", *FLOATS)
    zero = module.take("qzeros", "I32")
    inputs, columns = module.matrix(words)
    outputs, groups = columns * 8, module.groups(inputs)
    module.check(scale, (groups, outputs))
    module.check(zero, (groups, columns))
    return module.packed((outputs, inputs), (words, scale, zero), partial(_read, module))


def _read(module: Module) -> Integers:
    parts = module.parts
    scale_FG = parts["scales"].read_packed().astype(np.float32).T
    zero_FG = _outputs_in_order(parts["qzeros"].read_packed()).astype(np.float32).T
    values_DF = _outputs_in_order(parts["qweight"].read_packed())
    q = values_DF[0::2] | values_DF[1::2] << 4
    return Integers(module.weight, 4, q.T, zero_FG, scale_FG)


def _outputs_in_order(words: np.ndarray) -> np.ndarray:
    """The values u8 `[N, F]` of words `[N, F/8]`."""
    values = np.empty((*words.shape, 8), np.uint8)
    for place, output in enumerate(_OUTPUTS):
        values[:, :, output] = words >> 4 * place & 15
    return values.reshape(len(words), -1)
