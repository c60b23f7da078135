"""Hugging Face folders: weights equal those that transformers wrote; damage is refused before weights are
read."""

import json
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
from distaff.checkpoints.huggingface.huggingface_folder import HuggingFaceFolder
from distaff.model.errors import ConfigError
from distaff.model.parameters import parameter_shapes

from ..making import change_tensors, edit_json, make_model, refuse, save_folder

GATE = "model.layers.1.mlp.gate_proj.weight"
QUERY_NORM = "model.layers.0.self_attn.q_norm.weight"
QUERY_BIAS = "model.layers.0.self_attn.q_proj.bias"


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


def test_tied_head_with_a_copy(tmp_path: Path) -> None:
    """An equal copy of the embedding is accepted, another head is refused when it is read."""
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


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda t: t.pop(GATE), f"tensor {GATE} is missing; expected shape [96, 64]"),
        (lambda t: t.update({QUERY_NORM: np.ones(16, np.float32)}), f"tensor {QUERY_NORM} is not part"),
        (lambda t: t.update({QUERY_BIAS: np.ones(64, np.float32)}), f"tensor {QUERY_BIAS} is not part"),
        (lambda t: t.update({f"{GATE}_scale": np.ones(1, np.float32)}), f"tensor {GATE}_scale is not part"),
        (lambda t: t.update({GATE: t[GATE].T}), f"tensor {GATE} has shape [64, 96]; expected [96, 64]"),
        (lambda t: t.update({GATE: t[GATE].astype(np.float64)}), f"tensor {GATE} is F64"),
        (lambda t: t.update({GATE: t[GATE].astype(np.int8)}), f"tensor {GATE} is I8"),
    ],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, np.ndarray]], Any], reason: str
) -> None:
    change_tensors(folder / "model.safetensors", change)
    refuse(folder, "model.safetensors: ", reason)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"vocab_size": 321}, "tensor model.embed_tokens.weight has shape [320, 64]; expected [321, 64]"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers are configured"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "tensor model.layers.1."),
        ({"vocab_size": 10**15}, "model.embed_tokens.weight"),
    ],
)
def test_config_against_weights(folder: Path, changes: dict[str, Any], reason: str) -> None:
    edit_json(folder / "config.json", **changes)
    refuse(folder, reason)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
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


def test_code_beside_the_weights_is_not_used(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="auto_map"):
        HuggingFaceFolder(folder)


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
