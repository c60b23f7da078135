"""Every family of `families.py` against transformers: a folder that it wrote, read and computed by ours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from distaff.checkpoints.huggingface.families import FAMILIES
from distaff.checkpoints.huggingface.huggingface_folder import HuggingFaceFolder
from distaff.checkpoints.quantizing.quantized import Tensors, rotated
from distaff.model.sharding import create_mesh

from ...model.reference import Driver, draw_weights
from ...model.test_parity import TOLERANCE, run_staggered

STEPS = 6
LENGTHS = (30, 75)
SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.0, 4.0, 9.0],
    "original_max_position_embeddings": 40,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 20}
EXPERTS = dict(head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24)
GRANITE = dict(
    embedding_multiplier=3.5, residual_multiplier=0.4, attention_multiplier=0.3, logits_scaling=2.5
)

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 12, "sliding_window": None},
    "ministral3": {"head_dim": 8, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3}},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {},
    "qwen2 windows": {**WINDOW, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3 windows": {
        **WINDOW,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attention_bias": True,
    },
    "qwen3_moe": EXPERTS,
    "qwen3_moe normalized": {**EXPERTS, **WINDOW, "norm_topk_prob": True},
    "granite": {**GRANITE, "tie_word_embeddings": True},
    "granite biases": {**GRANITE, "attention_bias": True, "mlp_bias": True},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "smollm3 windows": {**WINDOW, "no_rope_layer_interval": 2, "tie_word_embeddings": False},
    "phi3": {"sliding_window": 20},
    "phi3 longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 40},
    "phi3 partial": {
        "rope_parameters": {
            **LONGROPE,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.2, 1.5],
            "long_factor": [2.0, 3.0, 5.0],
        },
        "original_max_position_embeddings": 40,
        "tie_word_embeddings": True,
    },
}
"""By the family, and what is special: sizes that differ from `SIZES`."""


def build(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """A tiny random model of a case."""
    sizes = {**SIZES, **MODELS[name], "attn_implementation": "eager", **changes}
    config = transformers.AutoConfig.for_model(name.split()[0], **sizes)
    return draw_weights(transformers.AutoModelForCausalLM.from_config(config), seed=5)


def test_every_family_is_compared() -> None:
    assert {name.split()[0] for name in MODELS} == FAMILIES.keys()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    """Every logit of prompts and of cached decoding, of weights that went through a folder."""
    model = build(name)
    model.save_pretrained(tmp_path)
    assert deviation(HuggingFaceFolder(tmp_path), model) <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen3", "granite biases", "phi3 partial", "qwen3_moe"])
def test_on_two_devices(tmp_path: Path, name: str) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    assert deviation(HuggingFaceFolder(tmp_path), model, devices=2) <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "granite"])
def test_rotated_for_int8(tmp_path: Path, name: str) -> None:
    """The rotation before weights are rounded to int8 changes no logit of models with biases, norms of heads,
    and multipliers."""
    model = build(name)
    model.save_pretrained(tmp_path)
    folder = HuggingFaceFolder(tmp_path)
    tensors = rotated(folder.tensors(), folder.config)
    assert deviation(folder, model, tensors=tensors) <= TOLERANCE


def test_the_text_half_of_a_model_of_images(tmp_path: Path) -> None:
    """Mistral Small 3's layout: nested configuration, prefixed names, a vision model that is not read."""
    text = transformers.MistralConfig(**SIZES, head_dim=12, sliding_window=None)
    sizes = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16
    )
    vision = transformers.PixtralVisionConfig(**sizes)
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    model = draw_weights(transformers.Mistral3ForConditionalGeneration(config), seed=5)
    model.save_pretrained(tmp_path)
    assert deviation(HuggingFaceFolder(tmp_path), model) <= TOLERANCE


def deviation(
    folder: HuggingFaceFolder,
    model: transformers.PreTrainedModel,
    *,
    tensors: Tensors | None = None,
    devices: int = 1,
) -> float:
    """The largest difference from the reference over two sequences, relative to its largest logit; tensors:
    other weights than the folder's, with a head of their own."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, folder.config.vocabulary, length).tolist() for length in LENGTHS]
    expected = [logits_of(model, prompt) for prompt in prompts]
    config = replace(folder.config, tied_head=folder.config.tied_head and tensors is None)
    parameters = {name: jnp.asarray(values) for name, values in tensors or folder.tensors()}
    driver = Driver(config, parameters, tokens=128, columns=12, optimized=False, mesh=create_mesh(devices))
    found = run_staggered(driver, prompts, [tokens for _, tokens in expected])
    pairs = [(ours, logits) for ours, (logits, _) in zip(found, expected, strict=True)]
    return max(float(np.abs(ours - logits).max() / np.abs(logits).max()) for ours, logits in pairs)


def logits_of(model: transformers.PreTrainedModel, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    """Logits at every prompt position and after each of some greedy tokens, and those tokens."""
    out = model(torch.tensor([prompt]), use_cache=True)
    logits, tokens = [out.logits[0]], []
    for _ in range(STEPS):
        tokens.append(int(logits[-1][-1].argmax()))
        out = model(torch.tensor([tokens[-1:]]), cache=out.cache, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits).numpy(), tokens
