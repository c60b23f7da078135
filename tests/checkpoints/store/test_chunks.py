"""Arrays read straight from a store's files: the bits that Orbax restores, or none."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from distaff.checkpoints.store.chunks import read_chunks
from distaff.checkpoints.store.manifest import TensorRecord
from distaff.checkpoints.store.orbax_group import restore, write

TYPES = ["float32", "float16", "bfloat16", "int8", "uint8"]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group as a store has it: of each type an array in four slabs, a whole matrix and a vector."""
    folder = tmp_path_factory.mktemp("group") / "layers.0"
    arrays, draw = {}, np.random.default_rng(0)
    for name in TYPES:
        for kind, shape in (("slabs", (4, 3, 5)), ("whole", (6, 5)), ("vector", (7,))):
            arrays[f"{kind} {name}"] = draw.integers(0, 100, shape).astype(_dtype(name))
    arrays["slabs float32"][1] = 0
    write(folder, arrays, {name for name in arrays if name.startswith("slabs")})
    return folder


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@pytest.mark.parametrize("name", TYPES)
def test_the_bits_are_those_that_orbax_restores(group: Path, name: str) -> None:
    """Also of a slab of zeros, and in the layout of a parameter that is divided along another axis."""
    expected = restore(group)
    records = {
        "slabs": TensorRecord((3, 20), name, 1, 4),
        "whole": TensorRecord((6, 5), name),
        "vector": TensorRecord((7,), name),
    }
    for kind, record in records.items():
        found = read_chunks(group / f"{kind} {name}", record, _dtype(name))
        assert found is not None
        assert found.dtype == _dtype(name)
        assert found.tobytes() == record.whole(expected[f"{kind} {name}"]).tobytes()
        assert found.ctypes.data % 64 == 0  # JAX uses it without a copy


def test_another_form_is_left_to_orbax(group: Path, tmp_path: Path) -> None:
    """Another shape, codec or length, or a missing chunk."""
    record = TensorRecord((6, 5), "float32")
    folder = tmp_path / "array"
    chunk, metadata = folder / "c" / "0" / "0", folder / "zarr.json"
    good = (group / "whole float32" / "c" / "0" / "0").read_bytes()
    written = json.loads((group / "whole float32" / "zarr.json").read_text())
    chunk.parent.mkdir(parents=True)

    def read(content: bytes, described: object, record: TensorRecord = record) -> np.ndarray | None:
        chunk.write_bytes(content)
        metadata.write_text(json.dumps(described))
        return read_chunks(folder, record, np.dtype("float32"))

    assert read(good, written) is not None
    assert read(good, written, TensorRecord((5, 6), "float32")) is None
    assert read(good, written | {"codecs": [{"name": "gzip"}]}) is None
    assert read(good[1:], written) is None
    assert read(good + b"0", written) is None
    assert read(b"", written) is None
    chunk.unlink()
    assert read_chunks(folder, record, np.dtype("float32")) is None
