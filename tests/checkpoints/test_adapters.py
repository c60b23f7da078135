"""Adapters as PEFT saves them: what is read, what is refused, and that nothing else is raised."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from distaff.checkpoints import open_checkpoint, read_adapter
from distaff.checkpoints.adapters import digest_of
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.names import HUGGINGFACE
from distaff.model.adapter import Adapter
from distaff.model.config import ModelConfig

from .making import make_model, save_folder

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""PEFT asks transformers for it."""

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("model"), make_model())


@pytest.fixture(scope="module")
def config(model: Path) -> ModelConfig:
    return open_checkpoint(model).config


def make_adapter(
    model: Path, folder: Path, seed: int = 0, *, embeddings: bool = False, **settings: Any
) -> peft.PeftModel:
    """A random adapter, saved by PEFT; returns the adapted model."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(seed)
    stated = {"r": 4, "lora_alpha": 12, "target_modules": ALL, "task_type": "CAUSAL_LM", **settings}
    adapted = peft.get_peft_model(base, peft.LoraConfig(**stated))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape) * 0.1)
    adapted.save_pretrained(folder, save_embedding_layers=embeddings)
    return adapted


def merged_of(adapted: peft.PeftModel) -> dict[str, np.ndarray]:
    return {name: w.detach().numpy() for name, w in adapted.merge_and_unload().state_dict().items()}


def assert_merged(adapter: Adapter, model: Path, adapted: peft.PeftModel) -> None:
    """The base's weights plus the adapter's products are what PEFT merges."""
    base, merged = load_file(model / "model.safetensors"), merged_of(adapted)
    changed = {name for name, w in merged.items() if name in base and not np.array_equal(w, base[name])}
    for name, (down, up) in adapter.weights.items():
        layer, inner = "", name
        if name.startswith("layers."):
            _, layer, inner = name.split(".", 2)
        theirs = HUGGINGFACE[inner].format(layer=layer)
        expected = merged[theirs] - base[theirs]
        np.testing.assert_allclose((down @ up).T, expected, rtol=0, atol=1e-5)
        changed.discard(theirs)
    assert not changed


SETTINGS: dict[str, dict[str, Any]] = {
    "all maps": {},
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        "alpha_pattern": {"down_proj": 3, "self_attn.q_proj": 20},
    },
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.1\..*(q|gate)_proj"},
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [1]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_adapter_of_peft_is_read(name: str, model: Path, config: ModelConfig, tmp_path: Path):
    """Its products are the difference that PEFT itself merges."""
    adapted = make_adapter(model, tmp_path / "adapter", embeddings=name == "all maps", **SETTINGS[name])
    adapter = read_adapter(tmp_path / "adapter", config)
    assert adapter.rank == max(down.shape[1] for down, _ in adapter.weights.values())
    assert_merged(adapter, model, adapted)


def test_equal_weights_have_one_digest(model: Path, config: ModelConfig, tmp_path: Path):
    """Other weights have another."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_adapter(model, tmp_path / name, seed)
    first, again, other = (digest_of(read_adapter(tmp_path / name, config)) for name in "abc")
    assert first == again != other and len(first) == 16


REFUSED = {
    "use_dora": (True, r"use_dora is True; expected False"),
    "bias": ("all", r"bias is 'all'; expected 'none'"),
    "modules_to_save": (["lm_head"], r"modules_to_save is \['lm_head'\]; expected None"),
    "peft_type": ("IA3", r"peft_type is 'IA3'; expected 'LORA'"),
    "use_something_new": (True, r"use_something_new is True; expected this unknown key to be off"),
    "lora_alpha": ("much", r"lora_alpha of .* is 'much'; expected a positive number"),
    "rank_pattern": ({"(": 3}, r"rank_pattern has '\('; expected a mapping"),
    "r": (5, r"has the rank 4; expected 5"),
}


@pytest.fixture(scope="module")
def saved(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_adapter(model, folder)
    return folder


@pytest.mark.parametrize("key", REFUSED)
def test_what_needs_more_is_refused(key: str, saved: Path, config: ModelConfig, tmp_path: Path):
    """By name, with the value."""
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    stated = json.loads((folder / "adapter_config.json").read_text())
    value, message = REFUSED[key]
    (folder / "adapter_config.json").write_text(json.dumps({**stated, key: value}))
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder, config)


def test_other_tensors_and_models_are_refused(saved: Path, config: ModelConfig, tmp_path: Path):
    """Experts, routers, embeddings, factors without their other half, numbers that are not finite."""
    tensors = load_file(saved / "adapter_model.safetensors")
    first = min(tensors)
    other = first.removesuffix("lora_A.weight") + "lora_B.weight"
    start = "base_model.model.model.layers.0."
    factors = {"lora_A.weight": np.ones((2, 64), np.float32), "lora_B.weight": np.ones((96, 2), np.float32)}

    def refused(changed: dict[str, np.ndarray], message: str) -> None:
        folder = Path(shutil.copytree(saved, tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            read_adapter(folder, config)

    for module in ("block_sparse_moe.experts.0.w1", "block_sparse_moe.gate", "mlp.experts"):
        added = {f"{start}{module}.{part}": values for part, values in factors.items()}
        refused({**tensors, **added}, rf"the adapter changes model.layers.0.{module}; expected")
    embedding = {f"{start}lora_embedding_A": np.ones((2, 2), np.float32)}
    refused({**tensors, **embedding}, r"expected only lora_A and lora_B")
    half = {name: w for name, w in tensors.items() if name != other}
    refused(half, r"has {'A': .*}; expected A \[r, inputs\] and")
    refused({**tensors, first: tensors[first] * np.nan}, r"expected a finite matrix")
    refused({**tensors, first: tensors[first][:, :32]}, r"has 32 inputs and .* expected 64 and")
    refused({}, r"no tensors")


def test_missing_and_pickled_files_are_refused(saved: Path, config: ModelConfig, tmp_path: Path):
    """A pickle is not opened."""
    with pytest.raises(CheckpointError, match=r"nowhere: missing; expected a folder with"):
        read_adapter(tmp_path / "nowhere", config)
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin: pickled weights are never opened"):
        read_adapter(folder, config)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: missing"):
        read_adapter(folder, config)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk=st.binary(max_size=200),
    at=st.integers(0, 400),
    name=st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]),
)
def test_a_damaged_folder_is_refused(
    junk: bytes, at: int, name: str, saved: Path, config: ModelConfig, tmp_path: Path
):
    """Whatever is wrong in its files: with our own error, or it is read."""
    shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:at] + junk + content[at + len(junk) :])
    try:
        read_adapter(folder, config)
    except CheckpointError:
        pass
