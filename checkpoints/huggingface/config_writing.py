"""A `ModelConfig` to a Hugging Face `config.json`: the inverse of `huggingface_config`.

The one idea: each family's keys are written, and read again; the first family that gives the same
`ModelConfig` is the model's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...model.config import ModelConfig, RopeScaling
from ...model.errors import ConfigError
from .families import FAMILIES
from .huggingface_config import read_config

Written = dict[str, Any]


def config_json(config: ModelConfig, dtype: str, end_tokens: tuple[int, ...] = ()) -> Written:
    """The content of a config.json that `transformers` reads as this model.

    Args:
      dtype: the name of the weights' type. end_tokens: ids that end a reply.

    Raises:
      ConfigError: no model of transformers computes it.
    """
    for kind, own in _own_keys(config):
        written = {**_common(config), **own, "model_type": kind, "dtype": dtype}
        written["architectures"] = [FAMILIES[kind].architecture]
        written["eos_token_id"] = list(end_tokens) or None
        written |= {"bos_token_id": None, "pad_token_id": None}
        if _reads_as(written, config):
            return written
    raise ConfigError(f"{config} has no config.json; expected a model that transformers can compute")


def _reads_as(written: Written, config: ModelConfig) -> bool:
    try:
        return read_config(Path("config.json"), written) == config
    except ConfigError:
        return False


def _common(config: ModelConfig) -> Written:
    dynamic = config.rope is not None and config.rope.kind == "dynamic"
    return {
        "vocab_size": config.vocabulary,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.rope.original_context
        if dynamic and config.rope
        else config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": _rope(config.rope, config.rope_theta),
        "tie_word_embeddings": config.tied_head,
    }


def _rope(rope: RopeScaling | None, theta: float) -> Written:
    if rope is None:
        return {"rope_type": "default", "rope_theta": theta}
    values = {
        "rope_type": rope.kind,
        "rope_theta": theta,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_context,
        "llama_4_scaling_beta": rope.query_growth,
    }
    if rope.kind == "llama3":
        values |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.kind == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        values |= {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
    if rope.kind == "longrope":
        values |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
    values["attention_factor"] = rope.attention_factor
    return {key: value for key, value in values.items() if value is not None}


def _own_keys(config: ModelConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The families' own keys, with the simpler families first."""
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.feed_forward_bias}
    window = {"sliding_window": config.window}
    kinds = [
        "sliding_attention" if config.window and layer not in config.full_layers else "full_attention"
        for layer in range(config.layers)
    ]
    windows = {**window, "use_sliding_window": config.window is not None, "layer_types": kinds}
    if config.moe is not None:
        each = {"num_experts_per_tok": config.moe.experts_per_token}
        yield "mixtral", {**window, **each, "num_local_experts": config.moe.experts}
        experts = {"num_experts": config.moe.experts, "norm_topk_prob": config.moe.normalized}
        sizes = {"moe_intermediate_size": config.feed_forward, "decoder_sparse_step": 1}
        yield "qwen3_moe", {**windows, **each, **experts, **sizes, "attention_bias": config.attention_bias}
        return
    yield "llama", biases
    yield "mistral", window
    yield "ministral3", window
    yield "qwen2", windows
    yield "qwen3", {**windows, "attention_bias": config.attention_bias}
    rotated = [int(layer not in config.unrotated_layers) for layer in range(config.layers)]
    yield "smollm3", {**windows, **biases, "no_rope_layers": rotated}
    yield (
        "granite",
        {
            **biases,
            "embedding_multiplier": config.embedding_scale,
            "residual_multiplier": config.residual_scale,
            "attention_multiplier": config.attention_scale,
            "logits_scaling": config.logits_divisor,
        },
    )
