"""config.json to ModelConfig: configs of transformers are understood, and nothing unknown is accepted."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from distaff.checkpoints.huggingface.families import FAMILIES
from distaff.checkpoints.huggingface.huggingface_config import read_config
from distaff.model.config import ModelConfig, RopeScaling
from distaff.model.errors import ConfigError
from distaff.model.rotary import rotary_tables

from ..making import SIZES
from .published import PUBLISHED

PATH = Path("here/config.json")
PLAIN = dict(
    vocabulary=320, layers=2, width=64, feed_forward=96, heads=4, kv_heads=2, head_size=16, norm_epsilon=1e-6
)

ROPES: list[tuple[dict[str, Any], RopeScaling | None, int]] = [
    ({"rope_type": "default"}, None, 128),
    (
        {"rope_type": "linear", "factor": 2.0},
        RopeScaling(kind="linear", factor=2.0, original_context=128),
        256,
    ),
    # The file already states the stretched context.
    (
        {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 64},
        RopeScaling(kind="linear", factor=2.0, original_context=64),
        128,
    ),
    (
        {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
        RopeScaling(kind="dynamic", factor=2.0, original_context=128),
        256,
    ),
    (
        {"rope_type": "dynamic", "factor": 2.0},
        RopeScaling(kind="dynamic", factor=2.0, original_context=128),
        256,
    ),
    (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        RopeScaling(kind="llama3", factor=8.0, original_context=32),
        128,
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        RopeScaling(kind="yarn", factor=4.0, original_context=32),
        128,
    ),
    # Without a trained context transformers uses max_position_embeddings.
    ({"rope_type": "yarn", "factor": 4.0}, RopeScaling(kind="yarn", factor=4.0, original_context=128), 512),
    (
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
        RopeScaling(kind="yarn", factor=2.0, original_context=128),
        256,
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.9,
            "attention_factor": 1.5,
            "truncate": False,
        },
        RopeScaling(
            kind="yarn",
            factor=4.0,
            original_context=32,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=0.9,
            attention_factor=1.5,
            truncate=False,
        ),
        128,
    ),
    # A null factor follows from the two contexts.
    (
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32},
        RopeScaling(kind="yarn", factor=4.0, original_context=32),
        128,
    ),
    # transformers uses the two mscales only together; zero counts as absent.
    (
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.0, "beta_fast": None},
        RopeScaling(kind="yarn", factor=4.0, original_context=128),
        512,
    ),
    # Keys that transformers does not read.
    (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "finetuned": True,
            "attn_factor": 2.0,
            "extrapolation_factor": 3.0,
        },
        RopeScaling(kind="yarn", factor=4.0, original_context=32),
        128,
    ),
    (
        {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0, "mrope_section": [1]},
        RopeScaling(kind="linear", factor=2.0, original_context=128),
        256,
    ),
]


@pytest.mark.parametrize("family", [transformers.LlamaConfig, transformers.MistralConfig])
@pytest.mark.parametrize("rope, expected, context", ROPES)
def test_transformers_own_configs(
    tmp_path: Path, family: Any, rope: dict[str, Any], expected: RopeScaling | None, context: int
) -> None:
    family(**SIZES, rope_parameters={"rope_theta": 500_000.0, **rope}).save_pretrained(tmp_path)
    config = read_config(PATH, json.loads((tmp_path / "config.json").read_text()))
    window = 4096 if family is transformers.MistralConfig else None
    assert config == ModelConfig(**PLAIN, context=context, rope=expected, rope_theta=500_000.0, window=window)


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize("rope, expected, context", ROPES)
def test_rope_in_the_old_format(
    key: str, rope: dict[str, Any], expected: RopeScaling | None, context: int
) -> None:
    scaling = {key: rope["rope_type"], **{name: value for name, value in rope.items() if name != "rope_type"}}
    config = read_config(PATH, llama(rope_theta=10_000, rope_scaling=scaling))
    assert config == ModelConfig(**PLAIN, context=context, rope=expected)


def test_ignored_rope_keys_are_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "finetuned": True}
    read_config(tmp_path / "config.json", llama(rope_scaling=scaling))
    assert "rope_parameters.finetuned is True; rope type 'yarn' does not use it" in caplog.text


@pytest.mark.parametrize("rope, expected, context", ROPES)
def test_the_same_rotation_as_transformers(
    rope: dict[str, Any], expected: RopeScaling | None, context: int
) -> None:
    """Equals what transformers computes from the same keys, also with keys that it ignores."""
    stated = transformers.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10_000.0, **rope})
    theirs = LlamaRotaryEmbedding(stated)
    ours = read_config(PATH, llama(rope_parameters={"rope_theta": 10_000.0, **rope}))
    theirs_plain, _ = theirs(torch.zeros(1), torch.arange(100)[None])
    cos, *_ = rotary_tables(ours, jnp.arange(100), jnp.full(100, 100))
    np.testing.assert_allclose(np.asarray(cos), theirs_plain[0, :, :8].numpy(), atol=2e-5)


def llama(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", **SIZES, **changes}


SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range":
    0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings":
    8192, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip

LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads":
    32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip

MISTRAL_0_2 = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype":
    "bfloat16", "transformers_version": "4.36.0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip


def test_published_configs() -> None:
    smollm2, llama_3_1, mistral = (read_config(PATH, c) for c in (SMOLLM2, LLAMA_3_1, MISTRAL_0_2))
    assert smollm2 == ModelConfig(
        vocabulary=49152, layers=30, width=576, feed_forward=1536, heads=9, kv_heads=3, head_size=64,
        context=8192, norm_epsilon=1e-5, rope_theta=100_000.0, tied_head=True,
    )  # fmt: skip
    assert llama_3_1.rope == RopeScaling(kind="llama3", factor=8.0, original_context=8192)
    assert (llama_3_1.context, llama_3_1.head_size, llama_3_1.rope_theta) == (131072, 128, 500_000.0)
    assert (mistral.window, mistral.context, mistral.rope_theta) == (None, 32768, 1_000_000.0)


@pytest.mark.parametrize(
    "changes, field, expected",
    [
        ({"num_key_value_heads": None}, "kv_heads", 4),
        ({"head_dim": None}, "head_size", 16),
        ({"head_dim": 32}, "head_size", 32),
        ({"attention_bias": True}, "attention_bias", True),
        ({"mlp_bias": True}, "feed_forward_bias", True),
        ({"pretraining_tp": 4}, "layers", 2),
        ({"layer_types": ["full_attention", "full_attention"]}, "window", None),
        ({"quantization_config": None}, "layers", 2),
        ({"model_type": "mistral"}, "window", 4096),
        (
            {"model_type": "mistral", "sliding_window": 7, "layer_types": ["sliding_attention"] * 2},
            "window",
            7,
        ),
    ],
)
def test_defaults_and_options(changes: dict[str, Any], field: str, expected: Any) -> None:
    assert getattr(read_config(PATH, llama(**changes)), field) == expected


def test_absent_key_value_heads() -> None:
    """An absent key means all heads to Llama and 8 to Mistral, as in transformers."""
    sizes = {
        key: value for key, value in llama(num_attention_heads=16).items() if key != "num_key_value_heads"
    }
    assert read_config(PATH, sizes).kv_heads == 16
    assert read_config(PATH, sizes | {"model_type": "mistral"}).kv_heads == 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_files(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are read as transformers reads them, with a remark on keys that transformers ignores."""
    stated = PUBLISHED[name]
    theirs = transformers.AutoConfig.for_model(**stated)
    ours = read_config(PATH, stated)
    assert read_config(PATH, theirs.to_dict() | {"auto_map": None}) == ours
    ignored = ("use_mrope", "interpolate_factor", "auto_map")
    assert all(any(key in message for key in ignored) for message in caplog.messages)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_absent_numbers(family: str) -> None:
    """The defaults of each configuration class of transformers; Mixtral's differ from the others."""
    theirs = transformers.AutoConfig.for_model(family, **SIZES)
    ours = read_config(PATH, {**SIZES, "model_type": family})
    assert (ours.norm_epsilon, ours.rope_theta, ours.window) == (
        theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"], getattr(theirs, "sliding_window", None),
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"model_type": None}, "model_type is None"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1.0"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"logit_scale": 0.3}, "logit_scale is 0.3"),
        ({"sliding_window": 7}, "sliding_window is 7"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "rope_type is 'proportional'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "short_factor is None; expected a list"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}},
            "short_factors has 1 numbers; expected 8",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 8, "long_factor": [1.0] * 8}},
            "short_factor is 0.0",
        ),
        ({"model_type": "mistral3"}, "text_config is None"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "mlp_only_layers is [0]"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1 numbers; expected 2"),
        ({"model_type": "smollm3", "no_rope_layers": "all"}, "no_rope_layers is 'all'"),
        ({"model_type": "granite", "residual_multiplier": 0}, "residual_multiplier is 0"),
        ({"model_type": "phi3", "full_attn_mod": 2}, "full_attn_mod is 2"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.35}, "rotary_size is 5"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["linear"],
            },
            "layer_types is",
        ),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor is nan"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": 2.5}, "hidden_size is 2.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"hidden_size": 66}, "hidden_size is 66; expected a multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"head_dim": 15}, "head_size is 15"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ],
)
def test_refusals_name_file_key_and_value(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_config(PATH, llama(**changes))
    assert str(refusal.value).startswith("here/config.json: ")
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)
