"""Mixtral in every format and layout: the same tensors, bit for bit; tensors that do not fit are refused by
name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distaff.checkpoints import convert, open_checkpoint
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.tokenizer import load_tokenizer
from distaff.model.config import MoEConfig
from distaff.model.errors import ConfigError
from distaff.model.parameters import parameter_shapes

from .making import edit_json, gguf_experts, gguf_metadata, make_model, save_folder, write_gguf

EXPERTS, CHOSEN = 3, 2
KEYS = {"llama.expert_count": EXPERTS, "llama.expert_used_count": CHOSEN}


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("mixtral", num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, sliding_window=9)


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("mixtral"), model)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def expected(model: Any) -> dict[str, np.ndarray]:
    """Our parameters, from the model's."""
    theirs = {name: value.numpy() for name, value in model.state_dict().items()}
    ours = {}
    for layer in range(model.config.num_hidden_layers):
        block = f"model.layers.{layer}.mlp"
        both = theirs[f"{block}.experts.gate_up_proj"].swapaxes(1, 2)
        gate, up = np.split(both, 2, axis=2)
        inner = {"gate": gate, "up": up, "router": theirs[f"{block}.gate.weight"].T}
        inner["down"] = theirs[f"{block}.experts.down_proj"].swapaxes(1, 2)
        ours |= {f"layers.{layer}.feed_forward.{name}": value for name, value in inner.items()}
        ours[f"layers.{layer}.attention.k"] = theirs[f"model.layers.{layer}.self_attn.k_proj.weight"].T
    return ours


def assert_equal(path: Path, expected: dict[str, np.ndarray], *, window: int | None = 9) -> None:
    """Checks that what is read equals the model, bit for bit, in the listed order and shapes."""
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.moe == MoEConfig(experts=EXPERTS, experts_per_token=CHOSEN)
    assert checkpoint.config.window == window
    found = dict(checkpoint.tensors())
    assert {name: value.shape for name, value in found.items()} == parameter_shapes(checkpoint.config)
    assert list(found) == list(parameter_shapes(checkpoint.config))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert checkpoint.nbytes == sum(value.nbytes for value in found.values())


def test_published_layout(saved: Path, expected: dict[str, np.ndarray]) -> None:
    """Per expert, as Mistral published it and transformers writes it."""
    assert any("block_sparse_moe.experts.2.w3" in name for name in load_file(saved / "model.safetensors"))
    assert_equal(saved, expected)


def test_fused_layout(tmp_path: Path, model: Any, expected: dict[str, np.ndarray]) -> None:
    """Gate and up of all experts in one tensor, as transformers 5 has them in memory."""
    save_folder(tmp_path, model)
    save_file(
        {name: value.numpy().copy() for name, value in model.state_dict().items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    assert any("experts.gate_up_proj" in name for name in load_file(tmp_path / "model.safetensors"))
    assert_equal(tmp_path, expected)


@pytest.mark.parametrize("unstacked", [False, True], ids=["stacked", "unstacked"])
def test_gguf(tmp_path: Path, model: Any, expected: dict[str, np.ndarray], unstacked: bool) -> None:
    """Both layouts that llama.cpp has written; the file has no window."""
    tensors = gguf_experts(model, unstacked=unstacked)
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(model, **KEYS), tensors)
    assert_equal(path, expected, window=None)


def test_store(tmp_path: Path, saved: Path, expected: dict[str, np.ndarray]) -> None:
    """Through a store, including the config."""
    convert(saved, tmp_path / "store")
    assert_equal(tmp_path / "store", expected)
    assert open_checkpoint(tmp_path / "store").config == open_checkpoint(saved).config


def without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Any:
    return lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name][:-1])})


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
ROUTER = "model.layers.0.block_sparse_moe.gate.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without(EXPERT), f"{EXPERT} is missing; expected shape [64, 96]"),
        (cut(EXPERT), f"{EXPERT} has shape [63, 96]; expected [64, 96]"),
        (cut(ROUTER), f"{ROUTER} has shape [2, 64]; expected [3, 64]"),
        (
            lambda tensors: tensors.update({EXPERT.replace(".2.", ".3."): tensors[EXPERT]}),
            "experts.3.w2.weight is not part of the configured model",
        ),
    ],
    ids=["missing", "cut", "router", "extra"],
)
def test_experts_that_do_not_fit(folder: Path, change: Any, reason: str) -> None:
    """The error names an expert that is missing, truncated or additional."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(folder)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_experts_per_tok": 4}, "moe.experts_per_token is 4; expected at most experts, 3"),
        ({"num_local_experts": 0}, "num_local_experts is 0"),
        ({"num_local_experts": "many"}, "num_local_experts is 'many'"),
        ({"shared_expert_intermediate_size": 5}, "shared_expert_intermediate_size is 5"),
        ({"model_type": "qwen2_moe"}, "model_type is 'qwen2_moe'"),
    ],
    ids=str,
)
def test_mixtures_that_do_not_fit(folder: Path, changes: dict[str, Any], reason: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ConfigError) as refusal:
        open_checkpoint(folder)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (KEYS | {"llama.expert_used_count": None}, "expert_used_count is None"),
        (KEYS | {"llama.expert_used_count": 9}, "moe.experts_per_token is 9"),
        (KEYS | {"llama.expert_count": 4}, "ffn_gate_inp.weight has shape [3, 64]; expected [4, 64]"),
        ({}, "tensor blk.0.ffn_gate.weight is missing"),
    ],
    ids=str,
)
def test_gguf_mixtures_that_do_not_fit(tmp_path: Path, model: Any, keys: dict, reason: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(model, **keys), gguf_experts(model, unstacked=False))
    with pytest.raises((ConfigError, CheckpointError)) as refusal:
        open_checkpoint(path)
    assert reason in str(refusal.value)


ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
"""A template with the rules of Mixtral-8x7B-Instruct: no system role, strict alternation."""


@pytest.fixture
def strict_tokenizer(folder: Path) -> Iterator[Any]:
    edit_json(folder / "tokenizer_config.json", chat_template=ALTERNATING)
    yield load_tokenizer(folder)


def test_a_system_message_is_folded_into_the_first_turn(strict_tokenizer: Any) -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}
    text = strict_tokenizer.decode(strict_tokenizer.encode_chat([system, user]))
    assert "Be brief." in text and text.index("Be brief.") < text.index("Hello!")
    assert text.count("[INST]") == 1


def test_turns_that_do_not_alternate_are_merged(strict_tokenizer: Any) -> None:
    """The template refuses them unchanged; it refuses an unknown role in any form."""
    from distaff.checkpoints.tokenization.chat_template import TemplateError

    first, second = {"role": "user", "content": "Hello!"}, {"role": "user", "content": "Are you there?"}
    merged = {"role": "user", "content": "Hello!\n\nAre you there?"}
    assert strict_tokenizer.encode_chat([first, second]) == strict_tokenizer.encode_chat([merged])
    with pytest.raises(TemplateError, match="only user and assistant roles"):
        strict_tokenizer.encode_chat([first, {"role": "critic", "content": "No."}])
