"""Safetensors files: which there are, what their headers say, and one tensor at a time.

Knows no names of ours. Nothing but headers is read until a tensor is asked for, and files are read, not
mapped, so that a file cut short under us is an error and not a dead process. The one idea: a file named by
an index is only opened if it lies in the folder itself.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .files import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are. `stamp` is the file's size and time of change when its header was read."""

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    stamp: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor, in its stored type.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        count = prod(self.shape)
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            values = np.fromfile(file, self.dtype, count)
        if len(values) != count or _stamp(self.file) != self.stamp:
            raise CheckpointError(
                f"{self.file}: tensor {self.name}: the file changed while it was being read"
            )
        return values.reshape(self.shape)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors, by name; reads headers only.

    Raises:
      CheckpointError: no safetensors, a damaged header, a shard that is missing, unlisted or outside the
        folder, or a tensor that is not where the index says.
    """
    if not (folder / INDEX_FILE).exists():
        return _read_header(_contained(folder, folder, SINGLE_FILE))
    placement = _read_index(folder)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(placement.values())):
        for name, tensor in _read_header(_contained(folder / INDEX_FILE, folder, shard)).items():
            if name in tensors:
                raise CheckpointError(f"{tensor.file}: tensor {name} is also in {tensors[name].file.name}")
            if placement.get(name) != shard:
                where = placement.get(name, "no shard")
                raise CheckpointError(
                    f"{tensor.file}: tensor {name} is here; {INDEX_FILE} puts it in {where}"
                )
            tensors[name] = tensor
    _check_complete(folder, placement, tensors)
    return tensors


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_FILE
    placement = read_json(path).get("weight_map")
    if not isinstance(placement, dict) or not placement:
        raise CheckpointError(f"{path}: weight_map is missing; expected tensor names to file names")
    for tensor, shard in placement.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: tensor {tensor} is in {shard!r}; expected a safetensors file beside it"
            )
    return placement


def _check_complete(folder: Path, placement: dict[str, str], tensors: Iterable[str]) -> None:
    if lost := sorted(placement.keys() - set(tensors)):
        raise CheckpointError(
            f"{folder / placement[lost[0]]}: tensor {lost[0]} is missing; {INDEX_FILE} lists it"
        )
    shards = {path.name for path in folder.glob("*-of-*.safetensors")}
    if extra := sorted(shards - set(placement.values())):
        raise CheckpointError(f"{folder / extra[0]}: not listed in {INDEX_FILE}")


def _contained(names_it: Path, folder: Path, name: str) -> Path:
    """The path of a file in the folder, links followed.

    Links inside the folder's own tree are fine, and so is the hub cache's layout, where
    `models--org--name/snapshots/<revision>/file` links to `models--org--name/blobs/<hash>`.
    """
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"{path}: missing")
    real, home = path.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in allowed) or not real.is_file():
        raise CheckpointError(f"{names_it}: {name} leads outside the folder; it is not opened")
    return path


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The library judges the header (size, overlap, gaps, types); then it is ours to read."""
    stamp = _stamp(path)
    try:
        with safe_open(path, "np"):
            pass
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: damaged or not safetensors ({_reason(error)})") from None
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, stamp) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int, stamp: tuple[int, int]) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} is {entry['dtype']}; expected one of {', '.join(_DTYPES)}"
        )
    shape, offset = tuple(entry["shape"]), start + entry["data_offsets"][0]
    return StoredTensor(path, name, _DTYPES[entry["dtype"]], shape, offset, stamp)


def _reason(error: Exception) -> str:
    """The library's short reason, without what the file contains."""
    return str(error).split(":")[0].strip().splitlines()[0][:80] if str(error) else type(error).__name__
