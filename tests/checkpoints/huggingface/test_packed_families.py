"""Quantised folders of other families than Llama: joined weights and a nested configuration change names and
places, never values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distaff.checkpoints import open_checkpoint

from .formats import FORMATS
from .packing import write_folders

JOINED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
Arrays = dict[str, np.ndarray]


@pytest.fixture(params=["w4a16-g32-zeros", "w4a16-channel", "w8a8"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_folders(tmp_path, FORMATS[request.param]).packed


def rewrite(source: Path, folder: Path, tensors: Arrays, config: dict[str, Any]) -> Path:
    """The folder with other tensors and another configuration."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    return folder


def read(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    tensors: Arrays = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors, json.loads((folder / "config.json").read_text())


def assert_equal(folder: Path, expected: Path) -> None:
    ours, theirs = open_checkpoint(folder), open_checkpoint(expected)
    assert ours.quantization == theirs.quantization
    for (name, values), (other, wanted) in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert name == other
        np.testing.assert_array_equal(values, wanted, err_msg=name)


def joined(tensors: Arrays) -> Arrays:
    """The tensors of the parts of a joined module, one after another."""
    found: Arrays = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition(".")
        block, _, module = stem.rpartition(".")
        whole, parts = next(
            ((whole, parts) for whole, parts in JOINED.items() if module in parts), (module, (module,))
        )
        place = f"{block.rpartition('.')[0]}.{whole}.{kind}" if whole in JOINED else name
        if place in found:
            continue
        every = [tensors[f"{block}.{part}.{kind}"] for part in parts] if whole in JOINED else [values]
        if kind == "weight_shape":
            every = [np.array([sum(each[0] for each in every), every[0][1]], every[0].dtype)]
        found[place] = np.concatenate(every) if len(every) > 1 else every[0]
    return found


def test_joined_weights(packed: Path, tmp_path: Path) -> None:
    """Phi's joined q, k, v and gate, up, packed, are the parts of the same Llama."""
    tensors, config = read(packed)
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    assert_equal(rewrite(packed, tmp_path / "joined", joined(tensors), config), packed)


def test_the_text_half_of_a_model_of_images(packed: Path, tmp_path: Path) -> None:
    """Ministral 3's and Mistral Small's layout; the quantisation is stated outside of `text_config`."""
    tensors, config = read(packed)
    named = {f"language_model.{name}": values for name, values in tensors.items()}
    named["vision_tower.patch_conv.weight"] = np.zeros((2, 2), np.float32)
    text = {
        key: value for key, value in config.items() if key not in ("quantization_config", "architectures")
    }
    outer = {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "quantization_config": config["quantization_config"],
        "text_config": text | {"model_type": "mistral", "sliding_window": None},
    }
    assert_equal(rewrite(packed, tmp_path / "nested", named, outer), packed)
