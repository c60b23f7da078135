"""What a model is built for: the kernels, the number of devices, the width of the weights.

The mathematics is the same for every target; `Transformer` holds it as a static attribute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jax.sharding import Mesh

from .kernels.registry import NATIVE, Kernels, choose
from .layout import Form, Layout
from .parameters import Quantization, has_scales_by_input, kinds_of, within


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """How a model is computed.

    Attributes:
      kernels: the backend of each operation. shards: the number of devices that the step is mapped over.
      quantization: of linear weights (see `quantize.py`). unstacked: each of a layer's experts, if they are
        not in panels, groups or blocks, is a separate array instead of a part of a stacked one (see
        `sharding.unstack`).
    """

    kernels: Kernels = field(default_factory=lambda: choose("cpu"))
    shards: int = 1
    quantization: Quantization | None = None
    unstacked: bool = False

    def layout(self, form: Form) -> Layout:
        """How weights of this form lie in memory for the kernel that reads them."""
        return Layout(dict(self.kernels.names)[form.operation], self.shards)

    def within(self, place: str) -> "Target":
        """The target of the modules in `place`, such as `layers.0`."""
        quantization = within(place, self.quantization)
        return self if quantization == self.quantization else replace(self, quantization=quantization)

    @classmethod
    def of(
        cls,
        mesh: Mesh,
        overrides: Mapping[str, str] | None = None,
        quantization: Quantization | None = None,
    ) -> "Target":
        """The target for a mesh's devices.

        Raises:
          ConfigError: an override names an unknown operation or backend.
        """
        platform = mesh.devices.flat[0].platform
        kernels = choose(platform, overrides or {})
        unstacked = platform == "cpu" and dict(kernels.names)["experts"] in ("blocks", NATIVE)
        unstacked = unstacked and not any(map(has_scales_by_input, kinds_of(quantization)))
        return cls(kernels=kernels, shards=mesh.size, quantization=quantization, unstacked=unstacked)
