"""GGUF files of every architecture against the Hugging Face folder of the same model, which `test_families`
compares with transformers. Files are written as llama.cpp's converter does; transformers' own reader checks
those that it knows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType as Kind
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from distaff.checkpoints.gguf.gguf_architectures import ARCHITECTURES
from distaff.checkpoints.gguf.gguf_file import GGUFFile
from distaff.checkpoints.huggingface.huggingface_folder import HuggingFaceFolder
from distaff.model.errors import ConfigError
from distaff.model.parameters import is_linear
from distaff.model.quantize import dequantize_groups

from ..huggingface.test_families import build
from ..making import GGUF_NAMES, SIZES, byte_level, byte_level_metadata, permute, write_gguf

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe normalized": ("qwen3moe", {"use_sliding_window": False}),
    "granite": ("granite", {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "phi3": ("phi3", {}),
    "phi3 longrope": ("phi3", {}),
    "phi3 partial": ("phi3", {}),
}
"""By a case of `test_families`: the architecture, and sizes that differ."""

NAMES = {
    **GGUF_NAMES,
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate.": "ffn_gate_inp.",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
PERMUTED = ("llama", "granite", "smollm3")


def tensors_of(model: transformers.PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """A model's parameters as llama.cpp's converter writes them."""
    config, tensors = model.config, {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.numpy()
        if architecture in PERMUTED and ".q_proj" in name:
            values = permute(values, config.num_attention_heads)
        if architecture in PERMUTED and ".k_proj" in name:
            values = permute(values, config.num_key_value_heads)
        if name.endswith("experts.gate_up_proj"):
            block = name.removesuffix("mlp.experts.gate_up_proj").replace("model.layers.", "blk.")
            tensors[f"{block}ffn_gate_exps.weight"], tensors[f"{block}ffn_up_exps.weight"] = np.split(
                values, 2, axis=1
            )
            continue
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = values
    rope = config.rope_parameters
    for kind in ("long", "short"):
        if f"{kind}_factor" in rope:
            tensors[f"rope_factors_{kind}.weight"] = np.asarray(rope[f"{kind}_factor"], np.float32)
    return tensors


def metadata_of(model: transformers.PreTrainedModel, architecture: str) -> dict[str, Any]:
    config, rope = model.config, model.config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stated = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": rope["rope_theta"],
        "vocab_size": config.vocab_size,
        "rope.dimension_count": int(head * (rope.get("partial_rotary_factor") or 1.0)),
        **OWN.get(architecture, lambda _: {})(config),
    }
    if architecture.startswith("qwen3"):
        stated |= {"attention.key_length": head, "attention.value_length": head}
    if rope["rope_type"] == "longrope":
        stated["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    named = {f"{architecture}.{key}": value for key, value in stated.items()}
    return named | byte_level_metadata(byte_level(), "qwen2")


OWN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "qwen3moe": lambda config: {
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    },
    "granite": lambda config: {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    },
    "phi3": lambda config: {"attention.sliding_window": config.sliding_window or 0},
}


def test_every_architecture_is_compared() -> None:
    assert {architecture for architecture, _ in CASES.values()} == ARCHITECTURES.keys()


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[HuggingFaceFolder, Path]:
    """A model's folder, and its GGUF."""
    name = request.param
    architecture, changes = CASES[name]
    model = build(name, vocab_size=SIZES["vocab_size"], **changes)
    model.save_pretrained(tmp_path)
    tensors = tensors_of(model, architecture)
    path = write_gguf(
        tmp_path / "m.gguf", metadata_of(model, architecture), tensors, architecture=architecture
    )
    return HuggingFaceFolder(tmp_path), path


@pytest.mark.parametrize("made", CASES, indirect=True)
def test_equals_the_folder(made: tuple[HuggingFaceFolder, Path]) -> None:
    """The same configuration and the same parameters, bit for bit."""
    folder, path = made
    found = GGUFFile(path)
    assert found.config == folder.config
    for (name, values), (other, expected) in zip(found.tensors(), folder.tensors(), strict=True):
        assert name == other
        np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("made", ["qwen2", "qwen3", "qwen3_moe normalized", "phi3"], indirect=True)
def test_transformers_reads_the_same_file_so(made: tuple[HuggingFaceFolder, Path]) -> None:
    """Its reader finds the weights that the file was made from: the layout is the published one."""
    folder, path = made
    model = transformers.AutoModelForCausalLM.from_pretrained(folder.path)
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    for name, expected in model.state_dict().items():
        if name in found or not model.config.tie_word_embeddings:
            assert torch.equal(found[name], expected), name


def test_a_stated_attention_factor(tmp_path: Path) -> None:
    model = build("phi3 longrope", vocab_size=SIZES["vocab_size"])
    metadata = metadata_of(model, "phi3") | {"phi3.rope.scaling.attn_factor": 1.19}
    tensors = tensors_of(model, "phi3")
    write = partial(write_gguf, metadata=metadata, architecture="phi3")
    rope = GGUFFile(write(tmp_path / "m.gguf", tensors=tensors)).config.rope
    assert rope is not None and rope.attention_factor == 1.19
    del tensors["rope_factors_long.weight"]
    with pytest.raises(ConfigError, match=r"rope_factors_long\.weight .* is missing; expected both"):
        GGUFFile(write(tmp_path / "n.gguf", tensors=tensors))


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q8_0])
@pytest.mark.parametrize("name", ["phi3", "qwen2", "smollm3"])
def test_kept_groups_are_those_of_the_widened_file(tmp_path: Path, name: str, kind: Kind) -> None:
    """As it is, a file with joined or unpermuted weights has the same weights as widened."""
    architecture, changes = CASES[name]
    sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, tie_word_embeddings=False)
    model = build(name, **{**changes, **sizes, "vocab_size": SIZES["vocab_size"]})
    tensors = tensors_of(model, architecture)
    metadata = metadata_of(model, architecture)
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors, kind, architecture)
    wide, kept = dict(GGUFFile(path).tensors()), dict(GGUFFile(path, as_is=True).tensors())
    for linear in (name for name in wide if is_linear(name) and name != "head"):
        low = kept.get(f"{linear}_low")
        parts = (kept[linear], kept[f"{linear}_scale"], low)
        dequantized = dequantize_groups(*(part if part is None else jnp.asarray(part) for part in parts))
        np.testing.assert_allclose(dequantized, wide[linear], rtol=1e-6, atol=1e-6, err_msg=linear)
