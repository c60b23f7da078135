"""What a model is built for: the kernels, the number of devices, the width of the weights.

The mathematics is the same for every target; `Transformer` holds it as a static attribute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jax.sharding import Mesh

from .kernels.registry import Kernels, choose
from .layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """How a model is computed.

    Attributes:
      kernels: the backend of each operation. shards: the number of devices that the step is mapped over.
      int8: linear weights are int8 (see `quantize.py`). unstacked: each of a layer's experts is a
        separate array instead of a part of a stacked one (see `sharding.unstack`).
    """

    kernels: Kernels = field(default_factory=lambda: choose("cpu"))
    shards: int = 1
    int8: bool = False
    unstacked: bool = False

    @property
    def layout(self) -> Layout:
        """How the linear weights of layers and head lie in memory for the kernel that reads them."""
        backend = dict(self.kernels.names)["int8_linear" if self.int8 else "linear"]
        return Layout(backend, self.shards, int8=self.int8)

    @classmethod
    def of(cls, mesh: Mesh, overrides: Mapping[str, str] | None = None, *, int8: bool = False) -> "Target":
        """The target for a mesh's devices.

        Raises:
          ConfigError: an override names an unknown operation or backend.
        """
        platform = mesh.devices.flat[0].platform
        kernels = choose(platform, overrides or {})
        unstacked = platform == "cpu" and dict(kernels.names)["experts"] == "blocks"
        return cls(kernels=kernels, shards=mesh.size, int8=int8, unstacked=unstacked)
