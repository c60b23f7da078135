"""A Hugging Face folder: `config.json` and safetensors, as a checkpoint with our names and layout.

`tokenizer` reads the tokenizer and the template. Pickles are refused, never opened.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...model.config import ModelConfig
from ...model.parameters import Quantization, is_linear, kind_of
from ..errors import CheckpointError
from ..files import INDEX_FILE, SINGLE_FILE, read_json
from ..generation import GenerationDefaults, read_generation
from ..names import (
    HUGGINGFACE,
    HUGGINGFACE_EXPERTS,
    HUGGINGFACE_FUSED,
    HUGGINGFACE_JOINED,
    HUGGINGFACE_QWEN_EXPERTS,
    find_origins,
    refuse_unused,
    table_for,
    unused,
    with_joined,
)
from ..notes import note
from .huggingface_config import read_config, text_config
from .tensors.keeping import (
    bytes_as_read,
    check_zero,
    own_quantization,
    packed_parts,
    report,
    spare_biases,
)
from .tensors.modules import Tensors, with_packed
from .tensors.quantization_config import read_quantization
from .tensors.shards import StoredTensor, read_headers
from .tensors.weight import PackedWeight

_EXTRA = re.compile(r"\.(weight|bias|sinks)$|(_proj|experts|gate|lm_head|embed_tokens)\.")
_TEXT = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
"""Beginnings of names in the text half of a model of text and images, with those of a model of text."""
_IMAGES = ("vision_tower.", "multi_modal_projector.")

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class HuggingFaceFolder:
    """A checkpoint with a header that is read and checked; the weights are still on disk.

    Attributes:
      path: the folder. config: of the model. generation: its end tokens and sampling defaults.
      quantization: of linear weights that stay packed; None if all are wide, or widened.
      fingerprint: SHA-256 of the config, every tensor's name, type, shape and position, and the size and
        modification time of its file. It is cheap and does not depend on weights: copies of the same files
        have another fingerprint.
      nbytes: of all tensors as they are read.

    Raises:
      ConfigError: config.json needs mathematics that is not implemented, or quantised weights cannot be kept.
      CheckpointError: files are missing or damaged, or the tensors do not fit the config.
    """

    def __init__(self, path: Path, *, as_is: bool = False) -> None:
        """Quantised weights stay packed where they can; `as_is` refuses those that cannot."""
        _refuse_pickles(path)
        self.path = path
        stated = read_json(path / "config.json")
        self.config: ModelConfig = read_config(path / "config.json", stated)
        self.generation: GenerationDefaults = read_generation(path)
        headers = _text_half(path, read_headers(path))
        headers = with_packed(headers, read_quantization(text_config(stated)))
        found = {name: tensor.shape for name, tensor in headers.items()}
        if self.config.tied_head:
            self._check_tied_head(path, headers, found)
        file = path / (SINGLE_FILE if (path / SINGLE_FILE).exists() else INDEX_FILE)
        dense = with_joined(HUGGINGFACE, HUGGINGFACE_JOINED, found)
        mixtures = (HUGGINGFACE_EXPERTS, HUGGINGFACE_QWEN_EXPERTS, HUGGINGFACE_FUSED)
        table = table_for(self.config, dense, mixtures, found)
        self._origins = find_origins(file, self.config, table, found)
        extra = unused(self._origins, found)
        self._no_biases = spare_biases(extra, headers)
        _check_extra(file, [name for name in extra if name not in self._no_biases])
        self._stored: Tensors = {name: headers[name] for name in found.keys() - set(extra)}
        self._spare_head = headers.get(HUGGINGFACE["head"]) if self.config.tied_head else None
        self._read_as(own_quantization(path, self.config, self._origins, self._stored, as_is=as_is))

    def widened(self) -> "HuggingFaceFolder":
        """The same folder with all weights wide; the headers are not read again."""
        wide = copy(self)
        wide._read_as(None)
        return wide

    def _read_as(self, quantization: Quantization | None) -> None:
        self.quantization: Quantization | None = quantization
        self.nbytes: int = bytes_as_read(self.config, self._origins, self._stored, quantization)
        self.fingerprint: str = _fingerprint(self.config, self._stored, quantization)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(name, values)` in `parameter_shapes` order, linears as `[inputs, outputs]`, in their stored type;
        a quantised weight that is widened as f32.

        Raises:
          CheckpointError: a file has changed since it was opened, or a tied model's second copy of the head
            differs, or a quantised weight is damaged.
        """
        report(self.path, self._origins, self._stored, self.quantization)
        check_zero(self._no_biases.values())
        for name, origin in self._origins.items():
            kind = kind_of(name, self.quantization) if is_linear(name) else None
            if kind is not None:
                yield from packed_parts(name, origin, self._stored, kind)
                continue
            values = origin.assemble(lambda foreign: self._stored[foreign].read())
            if name == "embed" and self._spare_head is not None:
                _check_equal(origin.names[0], values, self._spare_head)
            yield name, values

    def _check_tied_head(self, path: Path, headers: Tensors, found: dict[str, tuple[int, ...]]) -> None:
        """A tied model may store its head a second time; the copy must fit, and is compared when it is
        read."""
        shape, embed = found.pop(HUGGINGFACE["head"], None), found.get(HUGGINGFACE["embed"])
        if isinstance(headers.get(HUGGINGFACE["head"]), PackedWeight):
            raise CheckpointError(f"{path}: tensor lm_head.weight is quantised; expected wide, as it is tied")
        if shape is not None and shape != embed:
            raise CheckpointError(
                f"{path}: tensor lm_head.weight has shape {shape}; the head is tied to {embed}"
            )


def _text_half(path: Path, headers: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the language model by their usual names; those that read images are left out."""
    images = {name for name in headers if name.removeprefix("model.").startswith(_IMAGES)}
    if images:
        note(f"{path}: {len(images)} tensors of the vision model are not read: only text is computed")
    return {_usual(name): tensor for name, tensor in headers.items() if name not in images}


def _usual(name: str) -> str:
    for theirs, usual in _TEXT:
        if name.startswith(theirs):
            return usual + name.removeprefix(theirs)
    return name


def _refuse_pickles(path: Path) -> None:
    if (path / SINGLE_FILE).exists() or (path / INDEX_FILE).exists():
        return
    for pattern in _PICKLES:
        for file in sorted(path.glob(pattern)):
            raise CheckpointError(f"{file}: pickled weights are never opened; expected {SINGLE_FILE}")
    raise CheckpointError(f"{path}: no weights; expected {SINGLE_FILE} or {INDEX_FILE}")


def _check_extra(file: Path, extra: list[str]) -> None:
    """Refuses tensors that mean that the model computes more than is configured, and ignores the others.

    Refused are weights and biases within the model, and whatever belongs to a linear (scales of quantised
    weights, adapters). Ignored are buffers, which follow from the config, and tensors outside the model, such
    as the value head of a training run.
    """
    within = [name for name in extra if name.startswith(("model.", "lm_head."))]
    refuse_unused(file, [name for name in within if _EXTRA.search(name)])
    if extra:
        note(f"{file}: {', '.join(extra[:3])}{', ...' if extra[3:] else ''}: not part of the model; not read")


def _check_equal(embed: str, values: np.ndarray, head: StoredTensor | PackedWeight) -> None:
    if not np.array_equal(values.view(np.uint8), head.read().view(np.uint8)):
        raise CheckpointError(
            f"{head.file}: tensor {head.name} differs from {embed}; expected equal, as they are tied"
        )


def _fingerprint(config: ModelConfig, stored: Tensors, quantization: Quantization | None) -> str:
    rows = [
        (tensor.name, tensor.packed_dtype.name, tensor.shape, tensor.file.name, tensor.offset, tensor.stamp)
        for _, named in sorted(stored.items())
        for tensor in (named.stored if isinstance(named, PackedWeight) else (named,))
    ]
    kept = [str(quantization)] if quantization else []
    return hashlib.sha256(json.dumps([asdict(config), rows, *kept]).encode()).hexdigest()
