"""A path to a checkpoint, and a checkpoint to parameters on the device.

One interface for the three formats. The one idea: opening finds everything that can be found without reading
weights, in milliseconds and without jax, so that an invalid model is refused before anything is allocated.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.errors import ConfigError
from ..model.parameters import (
    FP8,
    INT4,
    INT8,
    Quantization,
    check_groups,
    is_fp8,
    main_kind,
    parameter_shapes,
    stored_type,
)
from .casting import cast
from .checkpoint import Checkpoint
from .errors import SourceNotFound, not_finite
from .files import INDEX_FILE, SINGLE_FILE, Progress
from .quantizing.floating import Fp8Checkpoint
from .quantizing.grouped import GroupedCheckpoint
from .quantizing.quantized import QuantizedCheckpoint
from .store.manifest import MANIFEST_FILE
from .store.store import Store

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

log = logging.getLogger(__name__)

AS_IS = "as-is"
NONE = "none"
QUANTIZATIONS = (INT8, INT4, FP8, AS_IS, NONE)
"""What `open_checkpoint` can do with weights."""

_MOST_THREADS = 4
"""Threads that cast tensors. Each holds one tensor and its copy; one that reads cannot feed more."""


def open_checkpoint(path: Path, quantize: str | None = None) -> Checkpoint:
    """Opens a Hugging Face folder, a GGUF file or a store, and checks everything except the weights.

    Args:
      quantize: `int8`, `int4` or `fp8` quantises linear weights when they are read, unless those of a
        store or a folder are so already. `as-is` keeps the bits of quantised weights, or refuses. `none`
        reads those of a GGUF or a folder as f32. None reads those of a GGUF as f32, and keeps those of a
        folder if it can.

    Raises:
      SourceNotFound: the path does not exist.
      ConfigError: the model needs mathematics that is not implemented, or its weights cannot be quantised so.
      CheckpointError: the checkpoint is damaged, incomplete or inconsistent.
    """
    if not path.exists():
        raise SourceNotFound(f"{path}: missing; expected a model folder or a GGUF file")
    if quantize not in (None, *QUANTIZATIONS):
        raise ConfigError(f"quantize is {quantize!r}; expected one of {', '.join(QUANTIZATIONS)}")
    checkpoint = _open(path, quantize)
    if quantize in (None, NONE, AS_IS) or _is_already(checkpoint.quantization, quantize):
        return checkpoint
    if checkpoint.quantization:
        raise ConfigError(
            f"{path}: its weights are {checkpoint.quantization}; expected {quantize} or wide ones"
        )
    return quantized(checkpoint, quantize)


def quantized(checkpoint: Checkpoint, quantize: str) -> Checkpoint:
    """A checkpoint with wide weights, which are rounded when they are read: `int8`, `int4` or `fp8`."""
    return _QUANTIZED[quantize](checkpoint)


_QUANTIZED = {INT8: QuantizedCheckpoint, INT4: GroupedCheckpoint, FP8: Fp8Checkpoint}


def _is_already(quantization: Quantization | None, quantize: str) -> bool:
    kind = main_kind(quantization)
    return quantize == (FP8 if is_fp8(kind) else kind)


def with_own_bits(checkpoint: Checkpoint, quantize: str | None, mesh: "Mesh") -> Checkpoint:
    """The checkpoint as it is served on a mesh.

    If nothing is chosen (`quantize` is None), a folder keeps the bits of its quantised weights where each
    device gets whole groups of them. So does a GGUF where they are also the fastest, on CPUs with native
    kernels.
    """
    from .gguf.gguf_file import GGUFFile
    from .huggingface.huggingface_folder import HuggingFaceFolder

    if quantize is not None or not isinstance(checkpoint, GGUFFile | HuggingFaceFolder):
        return checkpoint
    from ..model.kernels.native_library import library

    is_gguf = isinstance(checkpoint, GGUFFile)
    if is_gguf and (mesh.devices.flat[0].platform != "cpu" or library() is None):
        return checkpoint
    from ..model.sharding import pad_config

    try:
        kept = checkpoint.as_is() if is_gguf else checkpoint
        check_groups(pad_config(kept.config, mesh.size), kept.quantization, mesh.size)
    except ConfigError as error:
        log.info("the weights of %s are widened: %s", checkpoint.path.name, error)
        return checkpoint if is_gguf else checkpoint.widened()
    return kept


def _open(path: Path, quantize: str | None) -> Checkpoint:
    if (path / MANIFEST_FILE).exists():
        return Store(path)
    if path.is_dir():
        from .huggingface.huggingface_folder import HuggingFaceFolder
        from .training.orbax_item import find_item
        from .training.training_folder import TrainingFolder

        weights = any((path / name).exists() for name in (SINGLE_FILE, INDEX_FILE))
        if not weights and (item := find_item(path)):
            return TrainingFolder(path, item)
        folder = HuggingFaceFolder(path, as_is=quantize == AS_IS)
        own = quantize in (None, AS_IS) or _is_already(folder.quantization, quantize)
        return folder if own or folder.quantization is None else folder.widened()
    from .gguf.gguf_file import GGUFFile

    return GGUFFile(path, as_is=quantize == AS_IS)


def load_parameters(
    checkpoint: Checkpoint, dtype: Any, progress: Progress | None = None, mesh: "Mesh | None" = None
) -> "dict[str, jax.Array]":
    """All parameters on a mesh, by our names in `parameter_shapes` order, cast to `dtype`; quantised
    weights and their scales keep their types.

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
    quantization = checkpoint.quantization
    where = placements(checkpoint.config, mesh.size, quantization)
    dtypes = {name: np.dtype(stored_type(name, quantization) or dtype) for name in where}
    shapes = parameter_shapes(checkpoint.config, quantization)
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


def _cast(checkpoint: Checkpoint, dtypes: Mapping[str, np.dtype]) -> Iterator[tuple[str, np.ndarray]]:
    """A checkpoint's tensors in order, cast to the given types and checked to be finite.

    The caller's thread reads; others cast what has been read.
    """
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "cast") as pool:
        waiting: deque[tuple[str, Future[tuple[np.ndarray, bool]]]] = deque()
        for name, values in checkpoint.tensors():
            waiting.append((name, pool.submit(cast, values, dtypes[name])))
            del values
            if len(waiting) > threads:
                yield _finished(checkpoint, *waiting.popleft())
        while waiting:
            yield _finished(checkpoint, *waiting.popleft())


def _finished(
    checkpoint: Checkpoint, name: str, work: "Future[tuple[np.ndarray, bool]]"
) -> tuple[str, np.ndarray]:
    values, finite = work.result()
    if not finite:
        raise not_finite(checkpoint.path, name)
    return name, values
