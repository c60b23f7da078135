"""A Hugging Face `config.json` (model types `llama`, `mistral` and `mixtral`) to `ModelConfig`.

Does not read weights; `generation` reads sampling defaults. The one idea: every key is checked. A key is
mapped, or may only have the value that we compute, or is known not to affect the mathematics. Unknown keys
that may affect it (`unknown_keys` has the rule) are refused by name and value, because a model that is
computed wrongly still generates text; other unknown keys are logged.
"""

from pathlib import Path
from typing import Any

from ...model.config import ModelConfig, MoEConfig
from ...model.errors import ConfigError
from ..notes import note
from ..values import brief, flag, integer, number
from .huggingface_rope import read_rope
from .unknown_keys import may_change_the_mathematics

_ARCHITECTURES = {
    "llama": "llamaforcausallm",
    "mistral": "mistralforcausallm",
    "mixtral": "mixtralforcausallm",
}

_MAPPED = {
    "model_type", "architectures", "vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings", "layer_types",
    "tie_word_embeddings", "bos_token_id", "eos_token_id",
}  # fmt: skip

_MAPPED_FOR = {
    "llama": {"attention_bias", "mlp_bias"},
    "mistral": {"sliding_window"},
    "mixtral": {"sliding_window", "num_local_experts", "num_experts_per_tok"},
}

_WINDOWS = {"sliding_window", "max_window_layers"}
"""Keys of Qwen2 models in Llama's format, without effect if `use_sliding_window` is false."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "causal": (True,),
    "is_causal": (True,),
    "transformers_weights": ("model.safetensors", "model.safetensors.index.json"),
}
"""Keys that would change the mathematics, with the values that do not."""

_HARMLESS = {
    "_attn_implementation_autoset", "_commit_hash", "_model_name_or_path", "_name_or_path",
    "chunk_size_feed_forward", "dtype", "finetuning_task", "id2label", "initializer_range", "is_decoder",
    "is_llama_config", "label2id", "max_sequence_length", "attention_dropout", "attn_implementation",
    "name_or_path", "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "return_dict_in_generate", "router_aux_loss_coef",
    "router_jitter_noise", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "unk_token_id", "unsloth_fixed", "unsloth_version",
    "use_bfloat16", "use_cache",
}  # fmt: skip
"""Keys of transformers and of common tools that have no effect on the result and are not logged.
`pretraining_tp` splits a product into slices with the same sum; the router's loss and jitter belong to
training."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": None, "sliding_window": None},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {
        "num_key_value_heads": 8,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
}
"""The defaults of transformers' configuration classes for an absent key (not null)."""


def read_config(path: Path, config: dict[str, Any]) -> ModelConfig:
    """The model that a parsed config.json describes; `path` is for messages.

    Raises:
      ConfigError: the configuration is inconsistent, or needs mathematics that is not implemented.
    """
    try:
        family = _check_family(config)
        if family == "llama" and config.get("use_sliding_window") is False:
            config = {key: value for key, value in config.items() if key not in _WINDOWS}
        _check_keys(path, config, family)
        return _map(path, config | {key: config.get(key, value) for key, value in _DEFAULTS[family].items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _check_family(config: dict[str, Any]) -> str:
    family = config.get("model_type")
    if config.get("auto_map"):
        raise ConfigError(f"auto_map is {config['auto_map']!r}; code from a checkpoint is never run")
    if not isinstance(family, str) or family not in _ARCHITECTURES:
        raise ConfigError(f"model_type is {family!r}; expected one of {sorted(_ARCHITECTURES)}")
    architectures = config.get("architectures") or [_ARCHITECTURES[family]]
    if [str(name).lower() for name in architectures] != [_ARCHITECTURES[family]]:
        raise ConfigError(f"architectures is {architectures!r}; expected a causal language model")
    return family


def _check_keys(path: Path, config: dict[str, Any], family: str) -> None:
    """Refuses keys that may change the mathematics and are neither mapped nor at their only value."""
    known = _MAPPED | _MAPPED_FOR[family] | _HARMLESS
    for key, value in config.items():
        if value is None or key in known:
            continue
        if key in _ONLY:
            if value not in _ONLY[key]:
                raise ConfigError(f"{key} is {brief(value)}; expected {_ONLY[key][0]!r}")
        elif may_change_the_mathematics(key, value):
            raise ConfigError(f"{key} is {brief(value)}; this key is unknown and may change the mathematics")
        else:
            note(f"{path}: {key} is {brief(value)}; it is not used")


def _map(path: Path, config: dict[str, Any]) -> ModelConfig:
    vocabulary, width, heads = (
        integer(config, key) for key in ("vocab_size", "hidden_size", "num_attention_heads")
    )
    theta, rope, context = read_rope(path, config, integer(config, "max_position_embeddings"))
    window = integer(config, "sliding_window") if config["sliding_window"] is not None else None
    _check_layer_types(config, window)
    return ModelConfig(
        vocabulary=vocabulary,
        layers=integer(config, "num_hidden_layers"),
        width=width,
        feed_forward=integer(config, "intermediate_size"),
        heads=heads,
        kv_heads=heads if config["num_key_value_heads"] is None else integer(config, "num_key_value_heads"),
        head_size=_head_size(config, width, heads),
        context=context,
        norm_epsilon=number(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope=rope,
        tied_head=flag(config, "tie_word_embeddings"),
        attention_bias=flag(config, "attention_bias"),
        feed_forward_bias=flag(config, "mlp_bias"),
        window=window,
        moe=_mixture(config) if config["model_type"] == "mixtral" else None,
    )


def _mixture(config: dict[str, Any]) -> MoEConfig:
    experts, chosen = (integer(config, key) for key in ("num_local_experts", "num_experts_per_tok"))
    return MoEConfig(experts=experts, experts_per_token=chosen)


def _head_size(config: dict[str, Any], width: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return integer(config, "head_dim")
    if width % heads:
        raise ConfigError(f"hidden_size is {width}; expected a multiple of num_attention_heads {heads}")
    return width // heads


def _check_layer_types(config: dict[str, Any], window: int | None) -> None:
    """Checks that all layers are of one kind, the one that `sliding_window` implies."""
    kinds, expected = config.get("layer_types"), "sliding_attention" if window else "full_attention"
    if kinds is not None and (not isinstance(kinds, list) or any(kind != expected for kind in kinds)):
        raise ConfigError(f"layer_types is {brief(kinds)}; expected only {expected!r}")
