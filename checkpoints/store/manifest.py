"""`distaff.json`: the contents of a store, with a digest of every file and of itself.

Does not know how weights are encoded. The one idea: a store is exactly its manifest; an additional, missing
or different file is damage, and the error names the file and the tensor in it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...model.config import ModelConfig, MoEConfig, RopeScaling
from ...model.errors import ConfigError
from ...model.parameters import Quantization, quantization_by_parts
from ..errors import CheckpointError
from ..files import files_below, read_json, sha256_all
from .slabs import join

MANIFEST_FILE = "distaff.json"
WEIGHTS_FOLDER = "weights"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file's length in bytes and SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A parameter's shape and dtype name, and how it is split (see `slabs.py`).

    Attributes:
      axis: the axis that is split; None if the parameter is in one piece. slabs: the number of slabs.
    """

    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None
    slabs: int = 1

    @property
    def slab_shape(self) -> tuple[int, ...]:
        """The shape of one slab."""
        if self.axis is None:
            return self.shape
        return (
            *self.shape[: self.axis],
            self.shape[self.axis] // self.slabs,
            *self.shape[self.axis + 1 :],
        )

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the array in Orbax."""
        return self.shape if self.axis is None else (self.slabs, *self.slab_shape)

    def whole(self, stored: np.ndarray) -> np.ndarray:
        """The parameter, from the array in Orbax."""
        return stored if self.axis is None else join(stored, self.axis)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything about a store except its bytes.

    Attributes:
      config: of the model. source: the fingerprint of the checkpoint that it was made from.
      tensors: every parameter by our names, in `parameter_shapes` order.
      files: every file except the manifest, by path relative to the store.
    """

    config: ModelConfig
    source: str
    tensors: dict[str, TensorRecord]
    files: dict[str, FileRecord]

    def to_json(self) -> bytes:
        body = {"format": _FORMAT, **asdict(self)}
        return (json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n").encode()

    @property
    def quantization(self) -> Quantization | None:
        """Of linear weights."""
        parts = {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}
        return quantization_by_parts(parts)

    @property
    def fingerprint(self) -> str:
        """A digest of the manifest's contents, and so of the whole store."""
        return _digest({"format": _FORMAT, **asdict(self)})

    def verify(
        self, folder: Path, *, weights: bool = False, on_block: Callable[[int], None] | None = None
    ) -> None:
        """Checks names and sizes of all files, and the digests of either the weights or all other files.

        `on_block` receives the size of every block that was read.

        Raises:
          CheckpointError: a file is missing, additional, or has another size or other contents.
        """
        self._check_names(folder)
        chosen = [name for name in self.files if name.startswith(WEIGHTS_FOLDER + "/") == weights]
        digests = sha256_all([folder / name for name in chosen], on_block)
        for name, digest in zip(chosen, digests, strict=True):
            if digest != self.files[name].sha256:
                raise CheckpointError(
                    f"{folder / name}: {_what(name)}damaged: its SHA-256 is not the recorded one"
                )

    def _check_names(self, folder: Path) -> None:
        found = set(files_below(folder)) - {MANIFEST_FILE}
        for name in sorted(self.files.keys() - found):
            raise CheckpointError(f"{folder / name}: {_what(name)}missing; {MANIFEST_FILE} lists it")
        for name in sorted(found - self.files.keys()):
            raise CheckpointError(f"{folder / name}: not listed in {MANIFEST_FILE}")
        for name, record in self.files.items():
            size = os.stat(os.path.join(folder, name)).st_size  # a `Path` for each of thousands is slow
            if size != record.size:
                raise CheckpointError(
                    f"{folder / name}: {_what(name)}has {size} bytes; expected {record.size}"
                )


def read_manifest(folder: Path) -> Manifest:
    """A store's manifest.

    Raises:
      CheckpointError: missing, damaged, or of a format that this version does not read.
    """
    path = folder / MANIFEST_FILE
    body = read_json(path)
    recorded = body.pop("sha256", None)
    if body.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: format is {body.get('format')!r}; expected {_FORMAT}")
    if recorded != _digest(body):
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the recorded one")
    try:
        return _parse(body)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a manifest ({type(error).__name__}: {error})") from None


def _parse(body: dict[str, Any]) -> Manifest:
    config = _with_tuples(body["config"])
    rope = config.pop("rope")
    rope = RopeScaling(**_with_tuples(rope)) if rope else rope
    mixture = config.pop("moe", None)
    moe = MoEConfig(**mixture) if mixture else None
    tensors = {
        name: TensorRecord(**(entry | {"shape": tuple(entry["shape"])}))
        for name, entry in body["tensors"].items()
    }
    files = {name: FileRecord(**entry) for name, entry in body["files"].items()}
    return Manifest(
        config=ModelConfig(**config, rope=rope, moe=moe), source=body["source"], tensors=tensors, files=files
    )


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _what(name: str) -> str:
    """The tensor of a weights file, for messages: `weights/GROUP/TENSOR/...`."""
    parts = name.split("/")
    if parts[0] != WEIGHTS_FOLDER or len(parts) < 4:
        return ""
    group, tensor = parts[1:3]
    return f"tensor {group}.{tensor}: " if group.startswith("layers.") else f"tensor {tensor}: "
