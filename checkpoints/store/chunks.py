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

from .manifest import TensorRecord

_INDEX = struct.Struct("<QQI")
"""Behind a chunk's values: where they begin in the file, their length in bytes, and a checksum of these."""


def read_chunks(folder: Path, record: TensorRecord, dtype: np.dtype) -> np.ndarray | None:
    """An array of the shape `record.stored_shape`, bit for bit; None if its files have another form.

    The checksum is not checked: the manifest has a digest of every file.
    """
    chunk = record.shape if record.axis is None else (1, *record.slab_shape)
    try:
        if json.loads((folder / "zarr.json").read_bytes()) != _metadata(record.stored_shape, chunk, dtype):
            return None
        values = np.empty(record.stored_shape, dtype)
        flat = values.reshape(-1).view(np.uint8)
        parts = np.split(flat, record.slabs)
        inner = "/0" * (len(chunk) - 1)
        read = all(_fill(part, folder / f"c/{i}{inner}") for i, part in enumerate(parts))
    except (OSError, ValueError):  # a missing file, or no JSON
        return None
    return values if read else None


def _fill(part: np.ndarray, path: Path) -> bool:
    """Reads a chunk's values into `part`, u8; whether the file has the form that is expected."""
    with open(path, "rb", buffering=0) as file:
        index = b"" if file.readinto(part.data) != len(part) else file.read()
    return len(index) == _INDEX.size and _INDEX.unpack(index)[:2] == (0, len(part))


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
