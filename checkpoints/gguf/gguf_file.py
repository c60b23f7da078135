"""A GGUF file, dequantised tensor by tensor, with our names and layout.

Weights are returned as float32, whatever type they were stored in; `gguf_tokenizer` reads the tokenizer. The
one idea: for some architectures llama.cpp rotates adjacent pairs of a head's dimensions and we rotate pairs i
and i + H/2, so its converter permutes the rows of q and k, and we undo that.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from ...model import parameters
from ...model.config import ModelConfig
from ...model.errors import ConfigError
from ...model.parameters import INT8_GROUPS, Quantization, check_groups, has_embedding, is_linear, kind_of
from ..checkpoint import total_bytes
from ..errors import CheckpointError
from ..generation import GenerationDefaults, read_recommended, read_sampling
from ..names import (
    GGUF,
    GGUF_EXPERTS,
    GGUF_JOINED,
    GGUF_UNSTACKED,
    Origin,
    find_origins,
    refuse_unused,
    table_for,
    unused,
    with_joined,
)
from ..quantizing.grouped import quantized_in_groups
from ..values import shortest
from .gguf_config import FACTORS, architecture_of, read_gguf_config
from .gguf_groups import KEPT, WIDE, Groups, blocks_of, groups_of, quantization_of_kinds
from .gguf_header import GGUFHeader, GGUFTensor, stamp
from .gguf_parts import read_gguf_parts, tensors_of
from .gguf_tokenizer import end_ids

log = logging.getLogger(__name__)


class GGUFFile:
    """A checkpoint with a header that is read and checked; the weights are still on disk.

    Attributes:
      path: the file, or the first of several.
      config: of the model. generation: its end tokens and sampling defaults.
      quantization: None, unless the groups of quantised tensors are kept.
      fingerprint: SHA-256 of every file's whole header, size and modification time.
      nbytes: of all tensors as they are read.

    Raises:
      ConfigError: the metadata needs mathematics that is not implemented, or the groups cannot be kept.
      CheckpointError: the file is damaged, or its tensors do not fit the metadata.
    """

    def __init__(self, path: Path, *, as_is: bool = False) -> None:
        """`as_is` keeps the groups of Q4_0, Q4_1, Q4_K and Q8_0 tensors; otherwise all are read as f32."""
        self.path = path
        parts = read_gguf_parts(path)
        self._parts = parts
        metadata, tensors = parts[path].metadata, tensors_of(parts)
        for tensor in tensors.values():
            if not _dequantised(tensor.kind):
                raise CheckpointError(
                    f"{tensor.file}: tensor {tensor.name} is {tensor.kind.name}; not dequantisable"
                )
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        factors = {name: self._read(tensors[name]) for name in FACTORS if shapes.pop(name, None)}
        self.config: ModelConfig = read_gguf_config(path, metadata, shapes, factors)
        self._pairs = architecture_of(metadata).pairs
        self.generation = GenerationDefaults(eos_ids=end_ids(path, metadata), **_sampling(path, metadata))
        dense = with_joined(GGUF, GGUF_JOINED, shapes)
        table = table_for(self.config, dense, (GGUF_EXPERTS, GGUF_UNSTACKED), shapes)
        self._origins = find_origins(path, self.config, table, shapes)
        refuse_unused(path, unused(self._origins, shapes))
        self._stored = {name: tensors[name] for name in shapes}
        self._read_as(self._quantization(exact=True) if as_is else None)

    def as_is(self) -> "GGUFFile":
        """The same file with the groups of its tensors kept, or rounded to 8 bits where they cannot be; the
        header is not read again.

        Raises:
          ConfigError: the tensors cannot be in groups.
        """
        kept = copy(self)
        kept._read_as(self._quantization(exact=False))
        return kept

    def _read_as(self, quantization: Quantization | None) -> None:
        self.quantization: Quantization | None = quantization
        self.nbytes: int = total_bytes(self.config, quantization)
        self.fingerprint: str = _fingerprint(self._parts, quantization)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(name, float32 values)` in `parameter_shapes` order, linears as `[inputs, outputs]`.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        self._report()
        for name, origin in self._origins.items():
            kind = kind_of(name, self.quantization) if is_linear(name) else None
            if kind:
                yield from self._groups(name, origin, kind)
            elif name != "embed" or has_embedding(self.config, self.quantization):
                heads = self._rotary_heads(name)
                yield name, origin.assemble(lambda foreign, heads=heads: self._rows(foreign, heads))
        if not has_embedding(self.config, self.quantization):
            yield from self._groups("head", self._origins["embed"], INT8_GROUPS)

    def _quantization(self, *, exact: bool) -> Quantization | None:
        """That of the file's tensors; None if they are wide."""
        found = quantization_of_kinds(self._kinds(), exact=exact)
        unlike = self._unlike()
        if exact and unlike:
            raise ConfigError(
                f"the experts of {unlike[0]} are of several types; expected one, to keep their bits"
            )
        check_groups(self.config, found)
        return found

    def _unlike(self) -> list[str]:
        """The experts that count as wide because not all of them are in the same groups."""
        wide = [name for name, kind in self._kinds().items() if kind in WIDE]
        return [
            name for name in wide if any(self._stored[o].kind not in WIDE for o in self._origins[name].names)
        ]

    def _kinds(self) -> dict[str, Kind]:
        """The type of each linear weight's tensors, by our names; wide if they differ, or if others of the
        same experts are wide."""
        linear = {name: origin for name, origin in self._origins.items() if is_linear(name)}
        found = {name: self._kind(origin.names) for name, origin in linear.items()}
        downs = [name for name in found if name.endswith(".down")] if self.config.moe else []
        for down in downs:
            names = [f"{down.removesuffix('down')}{part}" for part in ("gate", "up", "down")]
            if any(found[name] in WIDE for name in names):
                found |= dict.fromkeys(names, Kind.F32)
        return found

    def _kind(self, tensors: Sequence[str]) -> Kind:
        first, *others = {self._stored[name].kind for name in tensors}
        alike = first in KEPT and all(KEPT.get(other) == KEPT[first] for other in others)
        return first if alike or not others else Kind.F32

    def _report(self) -> None:
        """Logs which weights are rounded once more."""
        kept = {name: kind for name, kind in self._kinds().items() if kind_of(name, self.quantization)}
        rounded = [kind.name for name, kind in kept.items() if kind not in KEPT and name != "head"]
        if rounded:
            names = ", ".join(sorted(set(rounded)))
            what = "linear weights are rounded to groups of 8 bits"
            log.info("%s: %d %s, which are of %s", self.path.name, len(rounded), what, names)
        if self.quantization and (unlike := self._unlike()):
            log.info("%s: %d stacks of experts are widened: of several types", self.path.name, len(unlike))

    def _groups(self, name: str, origin: Origin, kind: parameters.Kind) -> Iterator[tuple[str, np.ndarray]]:
        """A linear weight and its scales, with the file's own bits, or rounded to groups of 8 bits."""
        tensors, heads = [self._stored[foreign] for foreign in origin.names], self._rotary_heads(name)
        if KEPT.get(tensors[0].kind) != kind:
            wide = origin.assemble(lambda foreign: self._rows(foreign, heads))
            yield from quantized_in_groups(name, wide if origin.transposed else wide.T, kind)
            return
        parts = [groups for each in tensors for groups in self._groups_of(each, origin, heads)]
        is_stacked = len(parts) > 1 or len(tensors[0].shape) > 2
        for suffix, values in zip(("", "_scale", "_low"), zip(*parts, strict=True), strict=True):
            if values[0] is not None:
                yield f"{name}{suffix}", np.stack(values) if is_stacked else values[0]

    def _groups_of(self, stored: GGUFTensor, origin: Origin, heads: int) -> Iterator[Groups]:
        """Those of a tensor `[F, D]`, or of each expert of a stacked one; of a joined one, its own part."""
        outputs = stored.shape[-2]
        for raw in self._raw(stored).reshape(-1, outputs, stored.size // prod(stored.shape[:-1])):
            own = raw if origin.start is None else raw[origin.start : origin.start + origin.outputs]
            own = unpermute(own, heads) if heads else own
            yield groups_of(blocks_of(own, stored.kind), stored.kind)

    def _rows(self, name: str, rotary_heads: int) -> np.ndarray:
        """A stored tensor, its rows in our order."""
        values = self._read(self._stored[name])
        return unpermute(values, rotary_heads) if rotary_heads else values

    def _rotary_heads(self, name: str) -> int:
        """How many heads of a parameter have permuted rows: 0 except for q and k of some architectures."""
        if not self._pairs:
            return 0
        inner = name.split(".", 2)[-1].removesuffix("_bias")
        return {"attention.q": self.config.heads, "attention.k": self.config.kv_heads}.get(inner, 0)

    def _read(self, stored: GGUFTensor) -> np.ndarray:
        raw = self._raw(stored)
        typed = {Kind.F32: np.float32, Kind.F16: np.float16}.get(stored.kind)
        values = dequantize(raw if typed is None else raw.view(typed), stored.kind)
        return values.reshape(stored.shape)

    def _raw(self, stored: GGUFTensor) -> np.ndarray:
        with open(stored.file, "rb") as file:
            file.seek(stored.offset)
            raw = np.fromfile(file, np.uint8, stored.size)
        if len(raw) != stored.size or stamp(stored.file) != self._parts[stored.file].stamp:
            raise CheckpointError(
                f"{stored.file}: tensor {stored.name}: the file changed while it was being read"
            )
        return raw


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows `[heads, pair, half]` to `[heads, half, pair]`: the inverse of llama.cpp's converter."""
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(values.shape)


def _sampling(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The recommended sampling: `general.sampling.*`, and what the folder's generation_config.json adds."""
    beside = read_recommended(path.parent)
    own = read_sampling(path, _stated_sampling(metadata))
    return {name: beside.get(name) if value is None else value for name, value in own.items()}


def _stated_sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`general.sampling.*` with the names of generation_config.json; float32 as its shortest decimal."""
    keys = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
    keys |= {key: key for key in ("top_k", "top_p", "min_p")}
    stated = {name: metadata.get(f"general.sampling.{key}") for name, key in keys.items()}
    return {name: shortest(value) if type(value) is float else value for name, value in stated.items()}


def _fingerprint(parts: dict[Path, GGUFHeader], quantization: Quantization | None) -> str:
    digest = hashlib.sha256(str(quantization or "").encode())
    for path, header in parts.items():
        with open(path, "rb") as file:
            digest.update(file.read(header.length))
        digest.update(repr(header.stamp).encode())
    return digest.hexdigest()


@cache
def _dequantised(kind: Kind) -> bool:
    """Whether the gguf package can dequantise this type; tried with a block of zeros."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
