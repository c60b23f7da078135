"""Hugging Face folders: weights arrive as they left transformers; damage is refused before any is read."""

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.huggingface import HuggingFaceFolder
from distaff.model.errors import ConfigError, DistaffError
from distaff.model.parameters import parameter_shapes

from .making import edit_json, make_model, save_folder

GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("hf"), make_model())


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in two shards and an index, as transformers names them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    placement = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        placement |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placement}))
    return folder


@pytest.mark.parametrize(
    "family, changes",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
        ("mistral", {"sliding_window": 16}),
    ],
)
def test_every_tensor_equals_the_models_own(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    model = make_model(family, **changes)
    checkpoint = HuggingFaceFolder(save_folder(tmp_path, model, max_shard_size="60KB"))
    layer = model.model.layers[1]
    expected = {
        "embed": model.model.embed_tokens.weight,
        "norm": model.model.norm.weight,
        "layers.1.attention_norm": layer.input_layernorm.weight,
        "layers.1.feed_forward_norm": layer.post_attention_layernorm.weight,
    }
    for name in "qkvo":
        linear = getattr(layer.self_attn, f"{name}_proj")
        expected[f"layers.1.attention.{name}"] = linear.weight.T
        if linear.bias is not None:
            expected[f"layers.1.attention.{name}_bias"] = linear.bias
    for name in ("gate", "up", "down"):
        linear = getattr(layer.mlp, f"{name}_proj")
        expected[f"layers.1.feed_forward.{name}"] = linear.weight.T
        if linear.bias is not None:
            expected[f"layers.1.feed_forward.{name}_bias"] = linear.bias
    if not changes.get("tie_word_embeddings"):
        expected["head"] = model.lm_head.weight.T
    found = dict(checkpoint.tensors())
    assert {name: values.shape for name, values in found.items()} == parameter_shapes(checkpoint.config)
    assert list(found) == list(parameter_shapes(checkpoint.config))
    assert {name for name in found if not name.startswith("layers.0.")} == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values.detach().numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_types_are_kept(tmp_path: Path, dtype: str) -> None:
    model = make_model().to(getattr(torch, dtype))
    checkpoint = HuggingFaceFolder(save_folder(tmp_path, model))
    found = dict(checkpoint.tensors())
    assert {values.dtype.name for values in found.values()} == {dtype}
    assert checkpoint.nbytes == sum(values.nbytes for values in found.values())
    expected = model.lm_head.weight.T.detach().float().numpy()
    np.testing.assert_array_equal(found["head"].astype(np.float32), expected)


def test_shards_and_derived_frequencies(sharded: Path) -> None:
    """Old conversions also saved the rotary frequencies, which follow from the config."""
    whole = dict(HuggingFaceFolder(sharded).tensors())
    file = sharded / "model-00001-of-00002.safetensors"
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(load_file(file) | {extra: np.ones(8, np.float32)}, file)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"][extra] = file.name
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert whole.keys() == dict(HuggingFaceFolder(sharded).tensors()).keys()


def test_tied_head_with_a_copy(tmp_path: Path) -> None:
    """An equal copy of the embedding is taken for what it is, another head is refused when it is read."""
    folder = save_folder(tmp_path, make_model(tie_word_embeddings=True))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, file)
    assert "head" not in dict(HuggingFaceFolder(folder).tensors())
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        list(HuggingFaceFolder(folder).tensors())
    save_file(tensors | {"lm_head.weight": np.ones((3, 3), np.float32)}, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape"):
        HuggingFaceFolder(folder)


def refuse(folder: Path, *said: str) -> None:
    """Opening fails with one line that holds every one of `said`."""
    with pytest.raises(DistaffError) as refusal:
        HuggingFaceFolder(folder)
    for text in said:
        assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def header(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(file: Path, entries: dict[str, Any], data: bytes) -> None:
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_entry(**changes: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        entries, data = header(file)
        entries[GATE] |= changes
        write(file, entries, data)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:]),
        lambda file: file.write_bytes(struct.pack("<Q", 200_000_000) + file.read_bytes()[8:]),
        lambda file: file.write_bytes(b"\x80\x04\x95" + file.read_bytes()),
        with_entry(data_offsets=[0, 24576]),
        with_entry(dtype="F33"),
        with_entry(shape=[-96, -64]),
        with_entry(shape=[2**62, 64]),
    ],
    ids=[
        "empty",
        "cut",
        "trailing",
        "cut-header",
        "huge",
        "long",
        "pickle",
        "overlap",
        "dtype",
        "neg",
        "overflow",
    ],
)
def test_damaged_safetensors(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / "model.safetensors")
    refuse(folder, "model.safetensors: damaged or not safetensors")


def change_tensors(file: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, file)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(GATE), f"tensor {GATE} is missing; expected shape [96, 64]"),
        (lambda t: t.update(extra=t[GATE]), "tensor extra is not part"),
        (lambda t: t.update({GATE: t[GATE].T}), f"tensor {GATE} has shape [64, 96]; expected [96, 64]"),
        (lambda t: t.update({GATE: t[GATE].astype(np.float64)}), f"tensor {GATE} is F64"),
        (lambda t: t.update({GATE: t[GATE].astype(np.int8)}), f"tensor {GATE} is I8"),
    ],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, np.ndarray]], Any], said: str
) -> None:
    change_tensors(folder / "model.safetensors", change)
    refuse(folder, "model.safetensors: ", said)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"vocab_size": 321}, "tensor model.embed_tokens.weight has shape [320, 64]; expected [321, 64]"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers are configured"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "tensor model.layers.1."),
        ({"vocab_size": 10**15}, "model.embed_tokens.weight"),
    ],
)
def test_config_against_weights(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_json(folder / "config.json", **changes)
    refuse(folder, said)


def test_end_token_outside_the_vocabulary(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 320]}')
    refuse(folder, "eos_token_id 320 is outside the vocabulary of 320")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refuse(folder, f"{name}: ")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refuse(folder, "config.json: missing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "consolidated.00.pth"])
def test_pickles_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    opened: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "pickle.find_class", "import"):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    refuse(folder, name, "pickled weights are never opened")
    watching = False
    assert not [path for path in opened if name in path or "pickle" in path]


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refuse(folder, "no weights; expected model.safetensors")


def test_code_beside_the_weights_is_not_wanted(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="auto_map"):
        HuggingFaceFolder(folder)


def place(folder: Path, file: Any) -> None:
    """Has the index say that one tensor is in another file."""
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


def test_links_out_of_the_folder_are_not_followed(sharded: Path) -> None:
    shard, outside = sharded / "model-00001-of-00002.safetensors", sharded.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    refuse(sharded, shard.name, "leads outside the folder")


def test_the_hub_caches_links_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache/snapshots/abc", tmp_path / "cache/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in sharded.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs", file.name))
    assert HuggingFaceFolder(snapshot).config == HuggingFaceFolder(sharded).config


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda f: (f / "model-00001-of-00002.safetensors").unlink(),
            "model-00001-of-00002.safetensors: missing",
        ),
        (
            lambda f: shutil.copy(
                f / "model-00001-of-00002.safetensors", f / "model-00003-of-00002.safetensors"
            ),
            "model-00003-of-00002.safetensors: not listed",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "weight_map is missing"),
        (lambda f: place(f, "model-00001-of-00002.safetensors"), f"tensor {GATE} is"),
    ],
)
def test_index_and_shards_disagree(sharded: Path, change: Callable[[Path], Any], said: str) -> None:
    change(sharded)
    refuse(sharded, said)


def test_tensor_in_two_shards(sharded: Path) -> None:
    first, second = (sharded / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    tensors = load_file(first)
    twice = next(iter(tensors))
    save_file(load_file(second) | {twice: tensors[twice]}, second)
    refuse(sharded, second.name, f"tensor {twice} is")


def test_a_file_that_changes_while_it_is_read(folder: Path) -> None:
    checkpoint = HuggingFaceFolder(folder)
    tensors = checkpoint.tensors()
    next(tensors)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor model\.layers\.0\..* changed"):
        list(tensors)


def test_fingerprints(folder: Path) -> None:
    """The same files have the same fingerprint; another config or other bytes have another."""
    first = HuggingFaceFolder(folder).fingerprint
    assert HuggingFaceFolder(folder).fingerprint == first
    edit_json(folder / "config.json", rms_norm_eps=0.5)
    other = HuggingFaceFolder(folder).fingerprint
    change_tensors(folder / "model.safetensors", lambda tensors: tensors[GATE].fill(1.0))
    assert len({first, other, HuggingFaceFolder(folder).fingerprint}) == 3


def test_bfloat16_values(tmp_path: Path) -> None:
    model = make_model().to(torch.bfloat16)
    found = dict(HuggingFaceFolder(save_folder(tmp_path, model)).tensors())
    assert found["embed"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        found["embed"].view(np.uint16), model.model.embed_tokens.weight.detach().view(torch.uint16).numpy()
    )
