"""Reads an array of a store straight from its files, in the one form in which our writer leaves it.

Orbax takes half a second to import and milliseconds for each array, more than the disk does. Its uncompressed
Zarr 3 arrays need neither: each chunk is a file with the values, row-major and little-endian, and an index of
one entry behind them. Whatever has another form is left to Orbax (`orbax_group.py`).
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..casting import aligned
from .manifest import TensorRecord

_INDEX = struct.Struct("<QQI")
"""Behind a chunk's values: where they begin in the file, their length in bytes, and a checksum of these."""


def read_chunks(folder: Path, record: TensorRecord, dtype: np.dtype) -> np.ndarray | None:
    """A parameter of the shape `record.shape`, bit for bit; None if its files have another form.

    The checksum is not checked: the manifest has a digest of every file.
    """
    chunk = record.shape if record.axis is None else (1, *record.slab_shape)
    try:
        if json.loads((folder / "zarr.json").read_bytes()) != _metadata(record.stored_shape, chunk, dtype):
            return None
        whole = aligned(record.shape, dtype)
        parts = [whole] if record.axis is None else np.split(whole, record.slabs, record.axis)
        inner = "/0" * (len(chunk) - 1)
        read = all(_fill(part, folder / f"c/{i}{inner}") for i, part in enumerate(parts))
    except (OSError, ValueError):  # a missing file, or no JSON
        return None
    return whole if read else None


def _fill(part: np.ndarray, path: Path) -> bool:
    """Reads a chunk's values into a part of an array; whether the file has the form that is expected."""
    values = part if part.flags.c_contiguous else np.empty_like(part, order="C")
    raw = values.reshape(-1).view(np.uint8)
    with open(path, "rb", buffering=0) as file:
        index = b"" if file.readinto(raw.data) != raw.nbytes else file.read()
    if values is not part:
        part[...] = values
    return len(index) == _INDEX.size and _INDEX.unpack(index)[:2] == (0, raw.nbytes)


def _metadata(shape: tuple[int, ...], chunk: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """The `zarr.json` that Orbax writes for such an array."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [little if dtype.itemsize > 1 else {"name": "bytes"}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
