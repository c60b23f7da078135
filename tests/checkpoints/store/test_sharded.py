"""A checkpoint on a mesh: every device has its own share, and reads only that from a store."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from distaff.checkpoints import convert, load_parameters, open_checkpoint, store_writer
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.store import slabs
from distaff.checkpoints.store.store import Store
from distaff.model.config import ModelConfig
from distaff.model.parameters import parameter_shapes
from distaff.model.sharding import create_mesh, place, placements

from ..making import gguf_metadata, gguf_tensors, make_model, save_folder, write_gguf

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "nine-three": dict(
        hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True
    ),
    "one-kv": dict(num_key_value_heads=1),
    "biased": dict(attention_bias=True, mlp_bias=True),
    "odd-vocabulary": dict(vocab_size=322),
    "mixtral": dict(num_local_experts=8, num_experts_per_tok=2),
    "three-experts": dict(num_local_experts=3, num_experts_per_tok=2),
}


@pytest.fixture(autouse=True)
def cut_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of these tiny models are split like large ones."""
    monkeypatch.setattr(slabs, "_LEAST_BYTES", 0)


@given(array_shapes(min_dims=2, max_dims=3, max_side=6), st.data())
def test_cut_and_join(shape: tuple[int, ...], data: st.DataObject) -> None:
    """`join` is the inverse of `cut`; slab i is the i-th part of the axis."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    count = data.draw(st.sampled_from([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]))
    values = np.arange(np.prod(shape)).reshape(shape)
    pieces = slabs.cut(values, axis, count)
    np.testing.assert_array_equal(slabs.join(pieces, axis), values)
    for piece, part in zip(pieces, np.split(values, count, axis), strict=True):
        np.testing.assert_array_equal(piece, part)


@pytest.mark.parametrize("name", MODELS)
def test_every_device_has_its_share(tmp_path: Path, name: str) -> None:
    """From a Hugging Face folder and a store, on 1, 2 and 4 devices: the same as `place` with whole
    tensors."""
    family = "mixtral" if "num_local_experts" in MODELS[name] else "llama"
    folder = save_folder(tmp_path / "folder", make_model(family, **MODELS[name]))
    convert(folder, tmp_path / "store")
    whole = dict(open_checkpoint(folder).tensors())
    config = open_checkpoint(folder).config
    for shards in (1, 2, 4):
        mesh, where = create_mesh(shards), placements(config, shards)
        for path in (folder, tmp_path / "store"):
            found = load_parameters(open_checkpoint(path), "float32", None, mesh)
            assert list(found) == list(whole)
            for parameter, values in whole.items():
                assert_same(found[parameter], place(np.ascontiguousarray(values), where[parameter], mesh))


def assert_same(found: jax.Array, expected: jax.Array) -> None:
    """Equal to the bit, and on the same devices."""
    assert found.shape == expected.shape and found.sharding.is_equivalent_to(expected.sharding, found.ndim)
    for ours, theirs in zip(found.addressable_shards, expected.addressable_shards, strict=True):
        assert ours.device == theirs.device
        np.testing.assert_array_equal(np.asarray(ours.data), np.asarray(theirs.data))


def test_a_gguf_on_a_mesh(tmp_path: Path) -> None:
    model = make_model()
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(model), gguf_tensors(model))
    mesh, checkpoint = create_mesh(4), open_checkpoint(path)
    found = load_parameters(checkpoint, "bfloat16", None, mesh)
    where = placements(checkpoint.config, 4)
    for name, values in checkpoint.tensors():
        assert_same(found[name], place(values.astype(ml_dtypes.bfloat16), where[name], mesh))


def test_most_tensors_are_cut(tmp_path: Path) -> None:
    """Tensors that a mesh divides have slabs of whole heads, experts, or equal parts."""
    folder = save_folder(tmp_path / "folder", make_model("mixtral", **MODELS["mixtral"]))
    convert(folder, tmp_path / "store")
    store = Store(tmp_path / "store")
    records = {name.split(".", 2)[-1]: record for name, record in store.manifest.tensors.items()}
    cut = {name: (record.axis, record.slabs) for name, record in records.items()}
    assert cut["attention.q"] == (1, 4) and cut["attention.o"] == (0, 4) and cut["attention.k"] == (1, 2)
    assert cut["feed_forward.gate"] == cut["feed_forward.down"] == (0, 8)
    assert cut["embed"] == (0, 16) and cut["head"] == (1, 16) and cut["norm"] == (None, 1)
    chunks = list((tmp_path / "store/weights/layers.0/feed_forward.gate/c").iterdir())
    assert len(chunks) == 8


def test_nan_in_a_share_is_named(tmp_path: Path) -> None:
    """NaN is found on the device that holds it."""
    model = make_model()
    model.model.layers[1].self_attn.k_proj.weight.data[-1, -1] = float("nan")
    folder = save_folder(tmp_path / "folder", model)
    convert(folder, tmp_path / "store")
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.k holds NaN"):
        load_parameters(open_checkpoint(tmp_path / "store"), "float32", None, create_mesh(2))


def test_stores_of_one_piece_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with tensors that are not split, as in earlier versions, loads on any mesh."""
    folder = save_folder(tmp_path / "folder", make_model())
    monkeypatch.setattr(slabs, "_LEAST_BYTES", 1 << 40)
    convert(folder, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert {record.axis for record in store.manifest.tensors.values()} == {None}
    found = load_parameters(store, "float32", None, create_mesh(2))
    expected = load_parameters(open_checkpoint(folder), "float32", None, create_mesh(2))
    for name in expected:
        assert_same(found[name], expected[name])


LARGE = ModelConfig(
    vocabulary=32_000,
    layers=8,
    width=2048,
    feed_forward=8192,
    heads=32,
    kv_heads=8,
    head_size=64,
    context=64,
)


class Fabricated:
    """A checkpoint of 2.3 GiB that is generated while it is read."""

    quantization = None

    def __init__(self, path: Path, quantize: str | None) -> None:
        assert quantize is None
        self.path, self.config, self.fingerprint = path, LARGE, "made up"
        self.generation = open_checkpoint(path).generation
        self.nbytes = 4 * sum(map(prod, parameter_shapes(LARGE).values()))

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        shapes = parameter_shapes(LARGE)
        values = np.random.default_rng(0).random(max(map(prod, shapes.values())), np.float32)
        for name, shape in shapes.items():
            yield name, values[: prod(shape)].reshape(shape)


MEASURED = """
import sys, threading, time
from pathlib import Path
import jax, psutil
from distaff.checkpoints import load_parameters, open_checkpoint
from distaff.model.config import ModelConfig
from distaff.model.parameters import parameter_shapes
from distaff.model.sharding import create_mesh

jax.config.update("jax_num_cpu_devices", 4)
mesh, process, peak = create_mesh(4), psutil.Process(), 0
jax.block_until_ready(jax.numpy.zeros(8) + 1)

def watch():
    global peak
    while True:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.01)

store = open_checkpoint(Path(sys.argv[1]))
store.verify()
store.verify = lambda progress: None
before, read = process.memory_info().rss, process.io_counters().read_chars
threading.Thread(target=watch, daemon=True).start()
found = jax.block_until_ready(load_parameters(store, "float32", None, mesh))
held = sum(shard.data.nbytes for array in found.values() for shard in array.addressable_shards)
print("MEASURED", store.nbytes, held, peak - before, process.io_counters().read_chars - read)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's account in /proc")
def test_what_a_large_store_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.3 GiB onto four devices: each reads only its own bytes, and the whole is not in memory twice.

    In addition to the shares there are a layer's slabs, that layer joined, and memory that the allocator has
    not yet released: between 0.7 and 1.1 GiB, more on a busy machine. A restore with the whole twice takes
    4.6 GiB.
    """
    monkeypatch.undo()
    folder = save_folder(tmp_path / "folder", make_model())
    monkeypatch.setattr(store_writer, "open_checkpoint", Fabricated)
    convert(folder, tmp_path / "store")
    try:
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "store")]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    finally:
        shutil.rmtree(tmp_path / "store")
    assert out.returncode == 0, out.stderr[-2000:]
    total, held, peak, read = map(int, out.stdout.split("MEASURED")[1].split())
    print(f"shares {held / 2**30:.2f}, resident {peak / 2**30:.2f}, read {read / 2**30:.2f} GiB")
    assert total >= 2.2 * 2**30
    assert peak <= held + 1.5 * 2**30
    assert read <= 1.02 * held
