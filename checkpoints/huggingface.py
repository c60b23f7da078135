"""A Hugging Face folder: `config.json` and safetensors, offered as a checkpoint in our names and layout.

The tokenizer and the template are `tokenizer`'s. Pickles are refused, never opened.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..model.config import ModelConfig
from .errors import CheckpointError
from .files import read_json
from .generation import GenerationDefaults, read_generation
from .huggingface_config import read_config
from .names import HUGGINGFACE, HUGGINGFACE_EXPERTS, HUGGINGFACE_FUSED, find_origins, table_for
from .shards import INDEX_FILE, SINGLE_FILE, StoredTensor, read_headers

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class HuggingFaceFolder:
    """A checkpoint whose header is read and checked; the weights are still on disk.

    Attributes:
      path: the folder. config: the model. generation: its end tokens and sampling defaults.
      int8: never.
      fingerprint: SHA-256 over the config, every tensor's name, type, shape and place, and the size and time
        of change of its file. Cheap and made of no weights: equal files elsewhere have another one.
      nbytes: of all tensors as stored.

    Raises:
      ConfigError: config.json asks for mathematics we do not compute.
      CheckpointError: files are missing or damaged, or the tensors do not fit the config.
    """

    def __init__(self, path: Path) -> None:
        _refuse_pickles(path)
        self.path, self.int8 = path, False
        self.config: ModelConfig = read_config(path / "config.json", read_json(path / "config.json"))
        self.generation: GenerationDefaults = read_generation(path)
        check_end_ids(path, self.generation, self.config)
        headers = read_headers(path)
        found = {name: tensor.shape for name, tensor in headers.items() if not _is_derived(name)}
        if self.config.tied_head:
            self._check_tied_head(path, found)
        file = path / (INDEX_FILE if (path / INDEX_FILE).exists() else SINGLE_FILE)
        table = table_for(self.config, HUGGINGFACE, (HUGGINGFACE_EXPERTS, HUGGINGFACE_FUSED), found)
        self._origins = find_origins(file, self.config, table, found)
        self._stored: dict[str, StoredTensor] = {name: headers[name] for name in found}
        self._spare_head = headers.get(HUGGINGFACE["head"]) if self.config.tied_head else None
        self.nbytes: int = sum(tensor.nbytes for tensor in self._stored.values())
        self.fingerprint: str = _fingerprint(self.config, self._stored)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(name, values)` in `parameter_shapes` order, linears as `[inputs, outputs]`, in their stored type.

        Raises:
          CheckpointError: a file changed since it was opened, or a tied model's second copy differs.
        """
        for name, origin in self._origins.items():
            values = origin.assemble(lambda foreign: self._stored[foreign].read())
            if name == "embed" and self._spare_head is not None:
                _check_equal(self._stored[origin.names[0]], values, self._spare_head)
            yield name, values

    def _check_tied_head(self, path: Path, found: dict[str, tuple[int, ...]]) -> None:
        """A tied model may carry its head a second time; the copy must fit, and is compared on reading."""
        shape, embed = found.pop(HUGGINGFACE["head"], None), found.get(HUGGINGFACE["embed"])
        if shape is not None and shape != embed:
            raise CheckpointError(
                f"{path}: tensor lm_head.weight has shape {shape}; the head is tied to {embed}"
            )


def _refuse_pickles(path: Path) -> None:
    if (path / SINGLE_FILE).exists() or (path / INDEX_FILE).exists():
        return
    for pattern in _PICKLES:
        for file in sorted(path.glob(pattern)):
            raise CheckpointError(f"{file}: pickled weights are never opened; expected {SINGLE_FILE}")
    raise CheckpointError(f"{path}: no weights; expected {SINGLE_FILE} or {INDEX_FILE}")


def check_end_ids(path: Path, generation: GenerationDefaults, config: ModelConfig) -> None:
    """Refuses an end token that the model cannot produce."""
    for token in generation.eos_ids:
        if token >= config.vocabulary:
            raise CheckpointError(
                f"{path}: eos_token_id {token} is outside the vocabulary of {config.vocabulary}"
            )


def _is_derived(name: str) -> bool:
    """Old conversions saved the rotary frequencies, which follow from the config."""
    return name.endswith(".rotary_emb.inv_freq")


def _check_equal(stored: StoredTensor, values: np.ndarray, head: StoredTensor) -> None:
    if not np.array_equal(values.view(np.uint8), head.read().view(np.uint8)):
        raise CheckpointError(
            f"{head.file}: tensor {head.name} differs from {stored.name}; expected equal, as they are tied"
        )


def _fingerprint(config: ModelConfig, stored: dict[str, StoredTensor]) -> str:
    rows = [
        (name, tensor.dtype.name, tensor.shape, tensor.file.name, tensor.offset, tensor.stamp)
        for name, tensor in stored.items()
    ]
    return hashlib.sha256(json.dumps([asdict(config), rows]).encode()).hexdigest()
