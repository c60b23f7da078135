"""A path to a checkpoint, and a checkpoint to parameters on the device.

One interface for the three formats. The one idea: opening finds everything that can be found without reading
weights, in milliseconds and without jax, so that an invalid model is refused before anything is allocated.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.parameters import is_linear, parameter_shapes
from .checkpoint import Checkpoint
from .errors import SourceNotFound, not_finite
from .files import Progress
from .quantized import QuantizedCheckpoint
from .store.manifest import MANIFEST_FILE
from .store.store import Store

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

_EXPONENTS = {
    "float32": (np.uint32, 0x7F800000),
    "bfloat16": (np.uint16, 0x7F80),
    "float16": (np.uint16, 0x7C00),
}
"""By type: the integer type of its bits, and the exponent bits that are all set only in NaN and infinity."""

_CHUNK = 1 << 20


def open_checkpoint(path: Path, *, int8: bool = False) -> Checkpoint:
    """Opens a Hugging Face folder, a GGUF file or a store, and checks everything except the weights.

    With `int8`, linear weights are quantised when they are read, unless they are int8 already.

    Raises:
      SourceNotFound: the path does not exist.
      ConfigError: the model needs mathematics that is not implemented.
      CheckpointError: the checkpoint is damaged, incomplete or inconsistent.
    """
    if not path.exists():
        raise SourceNotFound(f"{path}: missing; expected a model folder or a GGUF file")
    checkpoint = _open(path)
    if not int8 or checkpoint.int8:
        return checkpoint
    return QuantizedCheckpoint(checkpoint)


def _open(path: Path) -> Checkpoint:
    if (path / MANIFEST_FILE).exists():
        return Store(path)
    if path.is_dir():
        from .huggingface.huggingface_folder import HuggingFaceFolder

        return HuggingFaceFolder(path)
    from .gguf.gguf_file import GGUFFile

    return GGUFFile(path)


def load_parameters(
    checkpoint: Checkpoint, dtype: Any, progress: Progress | None = None, mesh: "Mesh | None" = None
) -> "dict[str, jax.Array]":
    """All parameters on a mesh, by our names in `parameter_shapes` order, cast to `dtype`; int8 weights and
    their scales keep their types.

    Each device receives its own share (`model.sharding.placements`); without a mesh, the default device
    receives everything.

    The digests of a store's files are checked first (phase `verify`); then tensors are read, checked, cast
    and placed one by one (phase `load`, in bytes of `dtype`). With several devices, each reads its own share
    of a store.

    Raises:
      CheckpointError: the weights are damaged, or a tensor holds NaN or infinity (it is named).
    """
    if isinstance(checkpoint, Store):
        checkpoint.verify(progress)
    from ..model.sharding import create_mesh, place, placements

    mesh = mesh or create_mesh(1)
    where = placements(checkpoint.config, mesh.size, int8=checkpoint.int8)
    dtypes = {name: _dtype_of(name, dtype, checkpoint) for name in where}
    shapes = parameter_shapes(checkpoint.config, int8=checkpoint.int8)
    sizes = {name: prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    if isinstance(checkpoint, Store) and mesh.size > 1:
        placed = checkpoint.place(mesh, where, dtypes)
    else:
        placed = ((name, place(v, where[name], mesh)) for name, v in _cast(checkpoint, dtypes))
    parameters: dict[str, jax.Array] = {}
    done = 0
    for name, values in placed:
        parameters[name] = values
        done += sizes[name]
        if progress:
            progress("load", done, sum(sizes.values()))
    return parameters


def _dtype_of(name: str, dtype: Any, checkpoint: Checkpoint) -> np.dtype:
    """The type of a parameter on the device, if others have `dtype`."""
    if checkpoint.int8 and is_linear(name):
        return np.dtype(np.int8)
    return np.dtype(np.float32) if name.endswith("_scale") else np.dtype(dtype)


def _cast(checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> Iterator[tuple[str, np.ndarray]]:
    """A checkpoint's tensors, cast to the given types and checked to be finite."""
    for name, values in checkpoint.tensors():
        with np.errstate(over="ignore"):  # the check below finds overflows
            cast = np.ascontiguousarray(values).astype(dtypes[name], copy=False)
        if cast.dtype != np.int8 and not all_finite(cast):
            raise not_finite(checkpoint.path, name)
        yield name, cast


def all_finite(values: np.ndarray) -> bool:
    """Whether no element is NaN or infinite. Checks exponent bits, which is fast for bfloat16 as well."""
    bits, exponent = _EXPONENTS[values.dtype.name]
    flat = values.reshape(-1).view(bits)
    chunks = (flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK))
    return not any((chunk & bits(exponent)).max() == exponent for chunk in chunks)
