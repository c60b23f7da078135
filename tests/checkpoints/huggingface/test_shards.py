"""Which files and tensors of a folder are read, as in transformers; links and names that point outside."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from distaff.checkpoints.huggingface.huggingface_folder import HuggingFaceFolder

from ..making import change_tensors, refuse

GATE = "model.layers.1.mlp.gate_proj.weight"
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"


def equal(folder: Path, expected: dict[str, np.ndarray]) -> None:
    """Checks that a folder has these tensors, bit for bit, and that transformers reads all of them as
    well."""
    found = dict(HuggingFaceFolder(folder).tensors())
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    np.testing.assert_array_equal(found["head"].T, model.lm_head.weight.detach().numpy())
    up = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_array_equal(found["layers.1.feed_forward.up"].T, up)


@pytest.mark.parametrize(
    "name, values",
    [
        (BUFFER, np.ones(8, np.float32)),
        (BUFFER, np.ones(8)),
        ("model.layers.1.self_attn.masked_bias", np.array(-1e9, np.int64)),
        ("model.rotary_emb.cos_cached", np.ones((4, 16), np.float16)),
        ("v_head.summary.weight", np.ones((1, 64), np.float32)),
        ("extra", np.ones((3, 3), bool)),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_tensors_that_no_parameter_is_made_of(
    sharded: Path, caplog: pytest.LogCaptureFixture, name: str, values: np.ndarray, listed: bool
) -> None:
    expected = dict(HuggingFaceFolder(sharded).tensors())
    file = sharded / "model-00001-of-00002.safetensors"
    save_file(load_file(file) | {name: values}, file, {"format": "pt"})
    if listed:
        index = json.loads((sharded / "model.safetensors.index.json").read_text())
        index["weight_map"][name] = file.name
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    equal(sharded, expected)
    assert f"{name}: not part of the model; not read" in caplog.text


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model-00003-of-00003.safetensors"])
def test_files_that_the_index_does_not_list(
    sharded: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    expected = dict(HuggingFaceFolder(sharded).tensors())
    (sharded / name).write_bytes(b"half a downl")
    equal(sharded, expected)
    assert f"{name}: not part of the model; not read" in caplog.text


def test_a_whole_file_comes_before_an_index(
    sharded: Path, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that was saved again as one file beside its older shards."""
    change_tensors(sharded / "model-00001-of-00002.safetensors", lambda t: [v.fill(7) for v in t.values()])
    shutil.copy(saved / "model.safetensors", sharded)
    equal(sharded, dict(HuggingFaceFolder(saved).tensors()))
    assert "model.safetensors.index.json: not part of the model" in caplog.text


@pytest.mark.parametrize("there, here", [(1, 2), (2, 1)])
def test_a_tensor_in_two_shards(
    sharded: Path, caplog: pytest.LogCaptureFixture, there: int, here: int
) -> None:
    expected = dict(HuggingFaceFolder(sharded).tensors())
    shards = [sharded / f"model-0000{number}-of-00002.safetensors" for number in (there, here)]
    name, values = next(iter(load_file(shards[0]).items()))
    save_file(load_file(shards[1]) | {name: values}, shards[1], {"format": "pt"})
    equal(sharded, expected)
    assert f"{name} in {shards[1].name}: not read" in caplog.text


def test_the_index_selects_one_of_two_tensors(sharded: Path) -> None:
    """transformers uses the one in the last file."""
    expected = dict(HuggingFaceFolder(sharded).tensors())
    first, second = (sharded / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    name, values = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: values + 1}, second)
    found = dict(HuggingFaceFolder(sharded).tensors())
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


def test_a_tensor_in_another_shard_than_the_index_lists(sharded: Path) -> None:
    expected = dict(HuggingFaceFolder(sharded).tensors())
    place(sharded, "model-00001-of-00002.safetensors")
    equal(sharded, expected)
    change_tensors(sharded / "model-00002-of-00002.safetensors", lambda tensors: tensors.pop(GATE, None))
    change_tensors(sharded / "model-00001-of-00002.safetensors", lambda tensors: tensors.pop(GATE, None))
    refuse(sharded, f"tensor {GATE} is missing; expected shape [96, 64]")


def place(folder: Path, file: Any) -> None:
    """Changes the file of one tensor in the index."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][GATE] = file
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", 7, ""]
)
def test_index_names_only_files_beside_it(sharded: Path, name: Any) -> None:
    save_file({GATE: np.ones(3, np.float32)}, sharded.parent / "secret.safetensors")
    place(sharded, name)
    refuse(sharded, "model.safetensors.index.json", GATE, repr(name))


@pytest.mark.parametrize("target", ["outside.safetensors", "models--a--b/snapshots/x/outside.safetensors"])
def test_links_out_of_the_folder_are_not_followed(sharded: Path, target: str) -> None:
    shard, outside = sharded / "model-00001-of-00002.safetensors", sharded.parent / target
    outside.parent.mkdir(parents=True, exist_ok=True)
    shard.rename(outside)
    shard.symlink_to(outside)
    refuse(sharded, shard.name, f"points outside the folder, to {outside}")


@pytest.mark.parametrize("target", ["hub/models--a--b/blobs", "store/blobs"])
def test_links_to_stores_by_digest_are_followed(sharded: Path, tmp_path: Path, target: str) -> None:
    """`huggingface-cli download --local-dir` made such links before 0.23."""
    expected = dict(HuggingFaceFolder(sharded).tensors())
    blobs = tmp_path / target
    blobs.mkdir(parents=True)
    for number, shard in enumerate(sorted(sharded.glob("*.safetensors"))):
        shard.rename(blobs / f"digest{number}")
        shard.symlink_to(blobs / f"digest{number}")
    equal(sharded, expected)


def test_only_plain_files_are_opened(sharded: Path) -> None:
    shard = sharded / "model-00001-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    refuse(sharded, shard.name, "expected a plain file")


def test_the_hub_caches_links_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache/snapshots/abc", tmp_path / "cache/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in sharded.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs", file.name))
    assert HuggingFaceFolder(snapshot).config == HuggingFaceFolder(sharded).config


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda f: (f / "model-00001-of-00002.safetensors").unlink(),
            "model-00001-of-00002.safetensors: missing",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "weight_map is missing"),
    ],
)
def test_index_and_shards_disagree(sharded: Path, change: Callable[[Path], Any], reason: str) -> None:
    change(sharded)
    refuse(sharded, reason)
