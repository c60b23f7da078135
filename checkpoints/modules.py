"""A checkpoint to a Flax module and back: for training and research.

    load_model(source) --> CausalLM --save_model--> a safetensors folder or a store

The module is `model.module.CausalLM`. Serving does not need this file.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ..model.config import ModelConfig
from ..model.errors import ConfigError
from ..model.module import CausalLM
from ..model.parameters import Quantization
from ..model.sharding import copies, pad_config
from .errors import CheckpointError
from .files import Progress
from .generation import GenerationDefaults
from .huggingface.config_writing import config_json
from .huggingface.folder_writing import write_description, write_folder
from .reading import NONE, load_parameters, open_checkpoint
from .sources import resolve
from .store_writer import write_store
from .tokenizer import load_tokenizer


def load_model(
    source: str | Path | None = None,
    *,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> CausalLM:
    """A model with a checkpoint's weights, as an NNX module.

    Quantised weights are widened. On a mesh (see `model.sharding.create_mesh`) each device holds its share of
    them, and XLA divides the computation.

    Args:
      source: a folder, a GGUF, a store, a hub id or a bundled name; None for the bundled default.
      dtype: of parameters and computation, a floating-point type. revision: of a hub id.

    Raises:
      CheckpointError: the model cannot be found or read, or is a store of quantised weights.
      ConfigError: the model needs mathematics that is not implemented, or cannot be divided evenly.
    """
    checkpoint = open_checkpoint(resolve(None if source is None else str(source), revision=revision), NONE)
    if checkpoint.quantization is not None:
        raise CheckpointError(f"{checkpoint.path}: its weights are {checkpoint.quantization}; expected wide")
    if mesh is not None:
        _check_divisible(checkpoint.config, mesh.size)
    parameters = load_parameters(checkpoint, np.dtype(dtype), progress, mesh)
    return CausalLM(checkpoint.config, parameters)


def _check_divisible(config: ModelConfig, shards: int) -> None:
    if pad_config(config, shards) != config or copies(config, shards) > 1:
        raise ConfigError(
            f"the mesh has {shards} devices; expected a number that divides the {config.kv_heads} key/value "
            f"heads, the feed-forward width {config.feed_forward} and the vocabulary {config.vocabulary}"
        )


def save_model(
    model: CausalLM, destination: str | Path, source: str | Path | None = None, *, store: bool = False
) -> None:
    """Writes a module's weights as a safetensors folder, which `transformers` loads, or as a store.

    Args:
      destination: a new folder.
      source: the model whose tokenizer and end tokens belong to it; None writes neither. A store needs it.
      store: write a store.

    Raises:
      CheckpointError: the destination exists, a weight is not finite, or a store has no `source`.
      ConfigError: no model of transformers computes what the module does.
    """
    path = None if source is None else resolve(str(source))
    generation = GenerationDefaults() if path is None else open_checkpoint(path).generation
    checkpoint = ModuleCheckpoint(Path(destination), model, generation)
    if not store:
        write_folder(checkpoint, Path(destination), None if path is None else load_tokenizer(path))
        return
    if path is None:
        raise CheckpointError(f"{destination}: a store needs a tokenizer; expected the model's source")
    write_store(checkpoint, load_tokenizer(path), Path(destination))


def save_description(model: CausalLM, folder: str | Path, source: str | Path) -> None:
    """Writes a model's config.json, end tokens and tokenizer to a folder, for checkpoints that Orbax writes.

    Args:
      folder: is created if needed. source: the model whose tokenizer and end tokens belong to it.

    Raises:
      CheckpointError: the source cannot be read. ConfigError: no model of transformers computes it.
    """
    path = resolve(str(source))
    generation = open_checkpoint(path).generation
    config = config_json(model.config, model.parameters()["norm"].dtype.name, generation.eos_ids)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_description(Path(folder), config, generation, load_tokenizer(path))


class ModuleCheckpoint:
    """A module's weights as a `Checkpoint`; `fingerprint` is a digest of all of them."""

    def __init__(self, path: Path, model: CausalLM, generation: GenerationDefaults) -> None:
        self.path, self.config, self.generation = path, model.config, generation
        self.quantization: Quantization | None = None
        self._parameters = model.parameters()
        self.nbytes = sum(values.nbytes for values in self._parameters.values())
        digest = hashlib.sha256()
        for name, values in self.tensors():
            digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
        self.fingerprint = digest.hexdigest()

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """See `Checkpoint.tensors`."""
        for name, values in self._parameters.items():
            host = np.asarray(values)
            if not np.isfinite(host.astype(np.float32)).all():
                raise CheckpointError(
                    f"{self.path}: {name} contains NaN or infinity; expected finite weights"
                )
            yield name, host
