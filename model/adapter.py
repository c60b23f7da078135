"""A LoRA adapter's weights, as the computation uses them (Hu et al. 2021, arXiv:2106.09685).

`checkpoints/` reads them from files, `runtime/` puts them on devices. A linear map with an adapter computes
`x @ w + (x @ a) @ b`. The scale (`lora_alpha / r` and its variants) is already in b.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LowRank = tuple[np.ndarray, np.ndarray]
"""a `[inputs, r]` and b `[r, outputs]`, f32; for experts `[E, inputs, r]` and `[E, r, outputs]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """The low-rank weights of some of a model's linear maps.

    Attributes:
      rank: the largest r of its maps.
      weights: by the name of the adapted parameter, as in `parameters.parameter_shapes`: any of
        `layers.N.attention.q|k|v|o`, `layers.N.feed_forward.gate|up|down` and `head`. A tied head has the
        name `head`, too.
    """

    rank: int
    weights: Mapping[str, LowRank]
