"""The model families of Hugging Face `config.json` files: one row each, with what differs from a Llama.

`huggingface_config` checks and maps the keys that all of them share. The one idea: a family is data, its
architecture, its keys, the defaults of transformers' configuration class (5.24) for absent keys, and a
function from its own keys to fields of `ModelConfig`. No family has code in `model/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...model.config import MoEConfig
from ...model.errors import ConfigError
from ..values import brief, flag, integer, integers, number

Config = Mapping[str, Any]
Fields = dict[str, Any]

_WINDOW_KEYS = frozenset({"sliding_window", "max_window_layers", "use_sliding_window"})


def _biases(config: Config) -> Fields:
    return {
        "attention_bias": flag(config, "attention_bias"),
        "feed_forward_bias": flag(config, "mlp_bias"),
    }


def _window(config: Config) -> Fields:
    """A window in every layer."""
    window = config.get("sliding_window")
    _check_layer_types(config, "sliding_attention" if window else "full_attention")
    return {"window": None if window is None else integer(config, "sliding_window")}


def _check_layer_types(config: Config, expected: str) -> None:
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != expected for kind in kinds)):
        raise ConfigError(f"layer_types is {brief(kinds)}; expected only {expected!r}")


def _windows(config: Config, full: Callable[[int], bool]) -> Fields:
    """A window in the layers that `layer_types` lists, or, if it is absent, in those that are not `full`."""
    if not flag(config, "use_sliding_window") or config.get("sliding_window") is None:
        return _window({**config, "sliding_window": None})
    layers = integer(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["full_attention" if full(layer) else "sliding_attention" for layer in range(layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise ConfigError(f"layer_types is {brief(kinds)}; expected {layers} of {', '.join(known)}")
    whole = tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
    if len(whole) == layers:
        return {"window": None}
    return {"window": integer(config, "sliding_window"), "full_layers": whole}


def _llama(config: Config) -> Fields:
    _check_layer_types(config, "full_attention")
    return _biases(config)


def _mixtral(config: Config) -> Fields:
    experts, chosen = (integer(config, key) for key in ("num_local_experts", "num_experts_per_tok"))
    return {**_window(config), "moe": MoEConfig(experts=experts, experts_per_token=chosen)}


def _qwen_windows(config: Config) -> Fields:
    (first,) = integers([config["max_window_layers"]], "max_window_layers")
    return _windows(config, lambda layer: layer < first)


def _qwen2(config: Config) -> Fields:
    return {**_qwen_windows(config), "attention_bias": True, "output_bias": False}


def _qwen3(config: Config) -> Fields:
    return {**_qwen_windows(config), **_biases(config), "head_norms": True}


def _qwen3_moe(config: Config) -> Fields:
    if config["decoder_sparse_step"] != 1:
        raise ConfigError(f"decoder_sparse_step is {brief(config['decoder_sparse_step'])}; expected 1")
    if config.get("mlp_only_layers"):
        raise ConfigError(
            f"mlp_only_layers is {brief(config['mlp_only_layers'])}; expected an empty list: all layers have "
            "experts"
        )
    key = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
    moe = MoEConfig(
        experts=integer(config, key),
        experts_per_token=integer(config, "num_experts_per_tok"),
        normalized=flag(config, "norm_topk_prob"),
    )
    every = _windows(config, lambda _: False)
    return {
        **every,
        **_biases(config),
        "head_norms": True,
        "moe": moe,
        "feed_forward": integer(config, "moe_intermediate_size"),
    }


def _granite(config: Config) -> Fields:
    return {
        **_llama(config),
        "embedding_scale": number(config, "embedding_multiplier"),
        "residual_scale": number(config, "residual_multiplier"),
        "attention_scale": number(config, "attention_multiplier"),
        "logits_divisor": number(config, "logits_scaling"),
    }


def _smollm3(config: Config) -> Fields:
    layers = integer(config, "num_hidden_layers")
    rotated = config.get("no_rope_layers")
    if rotated is None:
        every = integer(config, "no_rope_layer_interval")
        rotated = [int((layer + 1) % every != 0) for layer in range(layers)]
    rotated = integers(rotated, "no_rope_layers")
    if len(rotated) < layers:
        raise ConfigError(f"no_rope_layers has {len(rotated)} numbers; expected {layers}, one a layer")
    return {
        **_windows(config, lambda layer: bool(rotated[layer])),
        **_biases(config),
        "unrotated_layers": tuple(layer for layer in range(layers) if not rotated[layer]),
    }


def _phi3(config: Config) -> Fields:
    return _window(config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What differs between a family and a Llama.

    Attributes:
      architecture: transformers' class. read: its own keys to fields of `ModelConfig`.
      keys: its own keys. defaults: of absent keys.
      rope_types: its own names of rope types.
      own_code: its checkpoints name Python files that are older than transformers' class; they are ignored.
    """

    architecture: str
    read: Callable[[Config], Fields]
    keys: frozenset[str] = frozenset()
    defaults: Fields = field(default_factory=dict)
    rope_types: Mapping[str, str] = field(default_factory=dict)
    own_code: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM", read=_llama, keys=frozenset({"attention_bias", "mlp_bias"})
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        read=_window,
        keys=frozenset({"sliding_window"}),
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "ministral3": Family(
        architecture="Ministral3ForCausalLM",
        read=_window,
        keys=frozenset({"sliding_window"}),
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16_384,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        read=_mixtral,
        keys=frozenset({"sliding_window", "num_local_experts", "num_experts_per_tok"}),
        defaults={
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
        },
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        read=_qwen2,
        keys=_WINDOW_KEYS,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        read=_qwen3,
        keys=_WINDOW_KEYS | {"attention_bias"},
        defaults={
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        read=_qwen3_moe,
        keys=_WINDOW_KEYS
        | {
            "attention_bias", "num_experts", "num_local_experts", "num_experts_per_tok",
            "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",
        },
        defaults={
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
        },
    ),
    "granite": Family(
        architecture="GraniteForCausalLM",
        read=_granite,
        keys=frozenset({
            "attention_bias", "mlp_bias", "embedding_multiplier", "residual_multiplier",
            "attention_multiplier", "logits_scaling",
        }),
        defaults={
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        read=_smollm3,
        keys=_WINDOW_KEYS | {"attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"},
        defaults={
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        read=_phi3,
        keys=frozenset({"sliding_window", "partial_rotary_factor", "embd_pdrop", "resid_pdrop"}),
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        rope_types={"yarn": "longrope"},
        own_code=True,
    ),
}  # fmt: skip
"""By `model_type`."""
