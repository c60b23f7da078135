"""Which unknown keys of a config.json are accepted: only those that no decoder uses in its computation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.checkpoints.huggingface.huggingface_config import read_config
from distaff.model.errors import ConfigError

from ..making import SIZES

PATH = Path("here/config.json")


def llama(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", **SIZES, **changes}


HARMLESS: dict[str, Any] = {
    "max_length": 4096, "min_length": 0, "do_sample": True, "num_beams": 1, "num_beam_groups": 4,
    "temperature": 0.7, "top_k": 50, "top_p": 0.9, "typical_p": 0.5, "repetition_penalty": 1.1,
    "length_penalty": 1.0, "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3,
    "early_stopping": True, "bad_words_ids": [[3]], "forced_bos_token_id": 1, "forced_eos_token_id": 2,
    "sep_token_id": 4, "decoder_start_token_id": 1, "remove_invalid_values": True,
    "renormalize_logits": True, "prefix": "x", "exponential_decay_length_penalty": [5, 1.1],
    "output_scores": True, "num_return_sequences": 2, "keys_to_ignore_at_inference": ["past_key_values"],
    "tokenizer_model_max_length": 16384, "tokenizer_padding_side": "right", "model_max_length": 4096,
    "max_seq_len": 4096, "seq_length": 4096, "n_positions": 4096, "block_size": 4096,
    "_model_name_or_path": "x.gguf", "_commit_hash": "abc", "_flash_attn_2_enabled": True,
    "use_flash_attention": True, "_attn_implementation": "sdpa", "use_fused_rms_norm": True,
    "attention_softmax_in_fp32": True, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
    "hidden_dropout": 0.1, "attention_probs_dropout_prob": 0.1, "layerdrop": 0.1,
    "gradient_checkpointing": True, "torch_compile": True, "tensor_parallel_degree": 8,
    "fuse_attention_qkv": True, "sequence_parallel": True, "weight_decay": 0.1, "learning_rate": 1e-4,
    "aux_loss_alpha": 0.01, "initializer_factor": 2.0, "init_std": 0.02, "vocab_size_original": 32000,
    "unpadded_vocab_size": 319, "pad_vocab_size_multiple_of": 64, "base_model": "x", "license": "mit",
    "num_labels": 2, "tf_legacy_loss": True, "num_logits_to_keep": 1,
    "transformers_weights": "model.safetensors", "is_causal": True, "clip_qkv": None, "qk_norm": False,
    "no_rope_layers": [], "pruned_heads": {}, "num_experts": 0, "logit_scale": 1.0,
    "residual_multiplier": 1, "norm_type": "RMSNorm", "position_embedding_type": "rope",
    "hidden_activation": "silu", "quantization_config": None, "num_layers": 2, "alibi": False,
    "use_parallel_residual": False, "final_logit_softcapping": 0.0, "custom_notes": {"a": [1]},
    "is_decoder": True, "rotary_pct": 1.0, "attention_type": "full", "attention_multiplier": None,
}  # fmt: skip
"""Keys with which transformers' Llama loads and computes the same."""

MATHEMATICS: dict[str, Any] = {
    "logit_scale": 0.3, "logits_scaling": 8.0, "embedding_multiplier": 12, "residual_multiplier": 0.22,
    "attention_multiplier": 0.015, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    "query_pre_attn_scalar": 256, "qk_norm": True, "use_qk_norm": True, "qk_layernorm": True,
    "no_rope_layers": [1, 0], "no_rope_layer_interval": 4, "clip_qkv": 8.0, "parallel_residual": True,
    "use_parallel_residual": True, "parallel_attn": True, "quantization_config": {"bits": 4},
    "load_in_4bit": True, "compression_config": {"format": "int"}, "attn_temperature_tuning": True,
    "attn_scale": 0.1, "floor_scale": 8192, "attention_chunk_size": 8192, "sliding_window": 7,
    "max_window_layers": 2, "sliding_window_pattern": 6, "window_size": 128, "attention_window": 128,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 64, "num_experts_per_token": 2,
    "moe_intermediate_size": 64, "first_k_dense_replace": 1, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "routed_scaling_factor": 2.5, "qkv_bias": True, "use_bias": True,
    "add_bias_linear": True, "lm_head_bias": True, "layer_norm_eps": 1e-5, "norm_type": "layernorm",
    "use_post_norm": True, "scale_emb": 12, "scale_depth": 1.4, "mup_enabled": True, "alibi": True,
    "position_embedding_type": "alibi", "rotary_dim": 32, "rotary_pct": 0.25, "rope_ratio": 50,
    "rope_local_base_freq": 1e4, "kv_lora_rank": 512, "attention_type": "mla", "attn_config": {"a": 1},
    "activation_function": "gelu", "hidden_activation": "gelu", "swiglu_limit": 7.0,
    "activation_sparsity": 0.9, "sparse_attention": True, "attention_sinks": 4, "num_sink": 4,
    "attn_output_gate": True, "cross_attention_layers": [1], "encoder_layers": 2,
    "layers_block_type": ["mamba"], "num_kv_shared_layers": 2, "skip_layers": [1],
    "block_configs": [{"a": 1}], "lora_rank": 8, "peft_config": {"r": 8}, "mamba_d_state": 16,
    "conv_bias": True, "use_bidirectional_attention": True, "is_causal": False, "normalize_embedding": True,
    "residual_scale": 0.5, "transformers_weights": "other.safetensors", "tie_qkv": True,
    "router_bias": True, "softmax_scale": 1.0, "qk_layernorm_type": "rms",
}  # fmt: skip
"""Keys that would change a Llama's computation."""


@pytest.mark.parametrize("family", ["llama", "mistral"])
@given(extra=st.sets(st.sampled_from(sorted(HARMLESS))))
@settings(max_examples=40, deadline=None)
def test_harmless_keys_change_nothing(family: str, extra: set[str]) -> None:
    plain = llama(model_type=family)
    assert read_config(PATH, plain | {key: HARMLESS[key] for key in extra}) == read_config(PATH, plain)


def test_transformers_computes_the_same_with_harmless_keys() -> None:
    kept = transformers.LlamaConfig(**SIZES)
    stated = {k: v for k, v in HARMLESS.items() if k not in ("transformers_weights", "pruned_heads")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **stated)).eval()
    plain = transformers.LlamaForCausalLM(kept).eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("key", sorted(MATHEMATICS))
def test_keys_that_may_change_the_mathematics(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here/config\.json: {key} is "):
        read_config(PATH, llama(**{key: MATHEMATICS[key]}))


@pytest.mark.parametrize(
    "key, value", [("attention_multiplier", 1.0), ("query_pre_attn_scalar", 1), ("qk_norm", "rms")]
)
def test_values_that_mean_nothing_elsewhere(key: str, value: Any) -> None:
    """A scale of 1 instead of 1/sqrt(head size), Granite's default, and a norm that no Llama has."""
    with pytest.raises(ConfigError, match=f"{key} is "):
        read_config(PATH, llama(**{key: value}))


def test_unknown_keys_are_logged_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for _ in range(2):
        read_config(tmp_path / "config.json", llama(max_length=4096))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'config.json'}: max_length is 4096; it is not used"
    ]


def test_windows_that_are_switched_off() -> None:
    """Qwen2 models in Llama's format; transformers' Llama ignores their window."""
    off = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28}
    assert read_config(PATH, llama(**off)) == read_config(PATH, llama())
