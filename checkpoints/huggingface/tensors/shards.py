"""Safetensors files: which files exist, their headers, and one tensor at a time.

Does not know our names. Only headers are read until a tensor is requested, and files are read, not mapped, so
that a file that is truncated meanwhile causes an error instead of ending the process. The one idea: an index
lists the files to read, and may list only files in the folder itself; which of their tensors a model needs is
not known here. As in transformers, tensors that are not requested are logged and may have any type.
"""

import json
import struct
from dataclasses import dataclass
from io import RawIOBase
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ...casting import aligned
from ...errors import CheckpointError
from ...files import INDEX_FILE, SINGLE_FILE, read_json
from ...notes import note

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
FLOATS = tuple(_DTYPES)
"""The types of wide weights and of scales."""
_PACKED_DTYPES = _DTYPES | {
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""The types of tensors of a quantised weight as well."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are.

    Attributes:
      kind: its type, as safetensors names it.
      stamp: the file's size and modification time when its header was read.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    stamp: tuple[int, int]

    @property
    def dtype(self) -> np.dtype:
        """Its type. Raises CheckpointError for a type that is not supported."""
        if self.kind not in _DTYPES:
            raise CheckpointError(
                f"{self.file}: tensor {self.name} is {self.kind}; expected one of {', '.join(_DTYPES)}"
            )
        return _DTYPES[self.kind]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def packed_dtype(self) -> np.dtype:
        """Its type if it may be a part of a quantised weight."""
        return _PACKED_DTYPES[self.kind]

    def read(self) -> np.ndarray:
        """The tensor, in its stored type.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        return self._read(self.dtype)

    def read_packed(self) -> np.ndarray:
        """As `read`; a tensor that may be a part of a quantised weight."""
        return self._read(self.packed_dtype)

    def _read(self, dtype: np.dtype) -> np.ndarray:
        values = aligned(self.shape, dtype)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset)
            whole = _fill(file, values)
        if not whole or _stamp(self.file) != self.stamp:
            raise CheckpointError(
                f"{self.file}: tensor {self.name}: the file changed while it was being read"
            )
        return values


def _fill(file: RawIOBase, values: np.ndarray) -> bool:
    """Reads the bytes of an array; whether the file has as many. One call reads less than 2 GiB."""
    left = values.reshape(-1).view(np.uint8).data
    while left:
        count = file.readinto(left)
        if not count:
            return False
        left = left[count:]
    return True


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors, by name; reads headers only.

    A whole `model.safetensors` takes precedence over an index. A tensor in two shards is read from the shard
    that the index lists; a tensor that is not in the listed shard, from the shard that has it.

    Raises:
      CheckpointError: no safetensors, a damaged header, or a shard that is missing or outside the folder.
    """
    if (folder / SINGLE_FILE).exists() or not (folder / INDEX_FILE).exists():
        files, placement = [SINGLE_FILE], {}
    else:
        placement = _read_index(folder)
        files = sorted(set(placement.values()))
    _note_others(folder, files)
    tensors: dict[str, StoredTensor] = {}
    spare: list[StoredTensor] = []
    for file in files:
        for name, tensor in _read_header(_contained(folder, file)).items():
            if name in tensors:
                spare.append(tensors[name] if placement.get(name) == file else tensor)
            if name not in tensors or placement.get(name) == file:
                tensors[name] = tensor
    if spare:
        others = f" and {len(spare) - 1} more" if len(spare) > 1 else ""
        note(f"{folder}: tensors stored twice: {spare[0].name} in {spare[0].file.name}{others}: not read")
    return tensors


def _note_others(folder: Path, files: list[str]) -> None:
    others = {path.name for path in folder.glob("*.safetensors")} - set(files)
    if files == [SINGLE_FILE] and (folder / INDEX_FILE).exists():
        others.add(INDEX_FILE)
    if others:
        note(f"{folder}: {', '.join(sorted(others))}: not part of the model; not read")


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


def _contained(folder: Path, name: str) -> Path:
    """The path of a file in the folder, links followed.

    A link may point to a plain file in the folder's own tree, or in a folder named `blobs`: the hub cache
    keeps the targets of its snapshots' links there, and so do folders that `huggingface-cli download
    --local-dir` made before 0.23, and other stores that use digests. Other links could point to any of the
    user's files, because somebody else may have made the folder.
    """
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"{path}: missing")
    real = path.resolve()
    if not real.is_file() or not (real.is_relative_to(folder.resolve()) or real.parent.name == "blobs"):
        raise CheckpointError(
            f"{path} points outside the folder, to {real}; expected a plain file there or in a folder `blobs`"
        )
    return path


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Reads a header after the library has checked it (size, overlap, gaps, types)."""
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
    shape, offset = tuple(entry["shape"]), start + entry["data_offsets"][0]
    return StoredTensor(path, name, entry["dtype"], shape, offset, stamp)


def _reason(error: Exception) -> str:
    """The library's short reason, without the file's contents."""
    return str(error).split(":")[0].strip().splitlines()[0][:80] if str(error) else type(error).__name__
