"""What a model is built for: which kernels, over how many devices, with how wide weights.

The same mathematics whatever the target; `Transformer` takes it as a static part of itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jax.sharding import Mesh

from .kernels.registry import Kernels, choose


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """How a model is to be computed.

    Attributes:
      kernels: the way of doing each operation. shards: over how many devices the step is mapped.
      int8: linear weights are int8 (see `quantize.py`). apart: a layer's experts are arrays of their own, in
        place of one that stacks them (see `sharding.lay_apart`).
    """

    kernels: Kernels = field(default_factory=lambda: choose("cpu"))
    shards: int = 1
    int8: bool = False
    apart: bool = False

    @property
    def turned(self) -> bool:
        """int8 weights of layers and head lie as `[outputs, inputs]`, as their kernel wants them."""
        return self.int8 and dict(self.kernels.names)["int8_linear"] == "turned"

    @classmethod
    def of(cls, mesh: Mesh, overrides: Mapping[str, str] | None = None, *, int8: bool = False) -> "Target":
        """What suits a mesh's devices.

        Raises:
          ConfigError: an override names an operation or a kernel that there is not.
        """
        platform = mesh.devices.flat[0].platform
        kernels = choose(platform, overrides or {})
        apart = platform == "cpu" and dict(kernels.names)["experts"] == "blocks"
        return cls(kernels=kernels, shards=mesh.size, int8=int8, apart=apart)
