"""Reads our own store: an Orbax checkpoint per group of parameters, under one manifest.

A group is one layer, the embedding, the last norm or the head. Groups are written and restored one at a time,
so that memory stays bounded. Arrays are uncompressed Zarr 3, one folder per tensor: floating-point weights
hardly compress, and restoring is then as fast as reading, which `chunks.py` does. Each array is split along
the axis that a mesh divides (`slabs.py`), so that a device reads only its share. `store_writer` writes them.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from ...model.config import ModelConfig
from ...model.parameters import Quantization, parameter_shapes
from ..errors import CheckpointError, not_finite
from ..files import Progress
from ..generation import read_generation
from .chunks import read_chunks
from .manifest import MANIFEST_FILE, WEIGHTS_FOLDER, Manifest, read_manifest

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from ...model.sharding import Placement


class Store:
    """A store with checked manifest, file sizes and small files; the weights are still on disk.

    Attributes:
      path: the folder. config: of the model. generation: its end tokens and sampling defaults.
      quantization: of its linear weights.
      fingerprint: digest of the manifest, and so of every byte. nbytes: size of all tensors as stored.

    Raises:
      CheckpointError: files are missing, additional or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.manifest.verify(path)
        self.config: ModelConfig = self.manifest.config
        _check_shapes(path, self.manifest)
        self.quantization: Quantization | None = self.manifest.quantization
        self.generation = read_generation(path)
        self.fingerprint: str = self.manifest.fingerprint
        self.nbytes: int = sum(
            prod(tensor.shape) * _dtype(tensor.dtype).itemsize for tensor in self.manifest.tensors.values()
        )
        self._verified = False

    def verify(self, progress: Progress | None = None) -> None:
        """Checks the SHA-256 of every weights file; phase `verify`.

        Raises:
          CheckpointError: a file is damaged; the message names it and its tensor.
        """
        files = self.manifest.files
        total = sum(record.size for name, record in files.items() if name.startswith(WEIGHTS_FOLDER))
        done, lock = 0, Lock()  # several threads hash blocks and report them

        def on_block(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                if progress:
                    progress("verify", done, total)

        self.manifest.verify(self.path, weights=True, on_block=on_block)
        self._verified = True

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(name, values)` in `parameter_shapes` order, as stored; verifies the files first if they are not
        yet verified.

        Raises:
          CheckpointError: a file is damaged, or does not match the manifest.
        """
        if not self._verified:
            self.verify()
        for group, names in grouped(self.manifest.tensors):
            restored: dict[str, np.ndarray] = {}
            for name in names:
                inner, record = inner_name(name), self.manifest.tensors[name]
                values = read_chunks(self._folder(group) / inner, record, _dtype(record.dtype))
                if values is None and not restored:
                    restored = self._restored(group)
                yield name, self._checked(name, restored.get(inner)) if values is None else values

    def _folder(self, group: str) -> Path:
        return self.path / WEIGHTS_FOLDER / group

    def _restored(self, group: str) -> dict[str, np.ndarray]:
        """A group's arrays, read by Orbax."""
        from .orbax_group import restore

        return restore(self._folder(group))

    def place(
        self, mesh: "Mesh", placements: "Mapping[str, Placement]", dtypes: Mapping[str, np.dtype]
    ) -> "Iterator[tuple[str, jax.Array]]":
        """`(name, values)` in `parameter_shapes` order, each device reads only its own share.

        Raises:
          CheckpointError: a file is damaged, or a tensor holds NaN or infinity.
        """
        from .sharded import restore_group

        for group, names in grouped(self.manifest.tensors):
            records = {inner_name(name): self.manifest.tensors[name] for name in names}
            wanted = {inner_name(name): placements[name] for name in names}
            types = {inner_name(name): dtypes[name] for name in names}
            restored = restore_group(self._folder(group), records, wanted, mesh, types)
            for name, (_, values, finite) in zip(names, restored, strict=True):
                if not finite:
                    raise not_finite(self.path, name)
                yield name, values

    def _checked(self, name: str, values: np.ndarray | None) -> np.ndarray:
        record = self.manifest.tensors[name]
        if values is None or values.shape != record.stored_shape or values.dtype != _dtype(record.dtype):
            raise CheckpointError(f"{self.path}: tensor {name} does not match {MANIFEST_FILE}")
        return record.whole(values)


def grouped(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """`(group, its parameters)` in order: `embed`, `layers.0`, …, `norm`, `head`."""
    for group, members in groupby(names, group_of):
        yield group, list(members)


def group_of(name: str) -> str:
    """The group of a parameter: its layer, or the parameter itself."""
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else name


def inner_name(name: str) -> str:
    """A parameter's name inside its group."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def _check_shapes(path: Path, manifest: Manifest) -> None:
    if manifest.config.layers > len(manifest.tensors):
        raise CheckpointError(
            f"{path / MANIFEST_FILE}: lists too few tensors for {manifest.config.layers} layers"
        )
    expected = parameter_shapes(manifest.config, manifest.quantization)
    found = {name: tensor.shape for name, tensor in manifest.tensors.items()}
    if list(found.items()) != list(expected.items()):
        raise CheckpointError(f"{path / MANIFEST_FILE}: its tensors are not those of its config")


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
