"""A Hugging Face `config.json` to `ModelConfig`.

`families` has the model types and what differs between them. Does not read weights; `generation` reads
sampling defaults. The one idea: every key is checked. A key is mapped, or may only have the value that we
compute, or is known not to affect the mathematics. Unknown keys that may affect it (`unknown_keys` has the
rule) are refused by name and value, because a model that is computed wrongly still generates text; other
unknown keys are logged.
"""

from pathlib import Path
from typing import Any

from ...model.config import ModelConfig
from ...model.errors import ConfigError
from ..notes import note
from ..values import brief, flag, integer, number
from .families import FAMILIES, Family
from .huggingface_rope import read_rope, rope_of
from .tensors.quantization_config import read_quantization
from .unknown_keys import may_change_the_mathematics

_MAPPED = {
    "model_type", "architectures", "vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings", "layer_types",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "auto_map", "quantization_config",
    "compression_config",
}  # fmt: skip

_WINDOWS = {"sliding_window", "max_window_layers"}
"""Keys of Qwen2 models in Llama's format, without effect if `use_sliding_window` is false."""

_WRAPPERS = {"mistral3": "Mistral3ForConditionalGeneration"}
"""Models of text and images, of which the text half is computed, with their architectures."""

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
    "full_attn_mod": (1,),
    "lm_head_bias": (False,),
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


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model's text half; the configuration itself if there is only text.

    Raises:
      ConfigError: the configuration of the text half is missing.
    """
    kind = config.get("model_type")
    if kind not in _WRAPPERS:
        return config
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise ConfigError(f"text_config is {brief(text)}; expected the configuration of the language model")
    for key in ("tie_word_embeddings", "quantization_config", "compression_config"):
        if config.get(key) is not None:
            text = {key: config[key], **text}
    return {"model_type": "mistral", **text, "architectures": None}


def read_config(path: Path, config: dict[str, Any]) -> ModelConfig:
    """The model that a parsed config.json describes; `path` is for messages.

    Raises:
      ConfigError: the configuration is inconsistent, or needs mathematics that is not implemented.
    """
    try:
        _check_wrapper(config)
        config = text_config(config)
        family = _check_family(config)
        if config.get("auto_map"):
            note(f"{path}: auto_map is {brief(config['auto_map'])}; the code that it names is not run")
        read_quantization(config)
        if config["model_type"] == "llama" and config.get("use_sliding_window") is False:
            config = {key: value for key, value in config.items() if key not in _WINDOWS}
        _check_keys(path, config, family)
        stated = {key: config.get(key, value) for key, value in family.defaults.items()}
        return _map(path, config | stated, family)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _check_wrapper(config: dict[str, Any]) -> None:
    expected = _WRAPPERS.get(str(config.get("model_type")))
    if expected and config.get("architectures") not in (None, [expected]):
        raise ConfigError(f"architectures is {config['architectures']!r}; expected [{expected!r}]")


def _check_family(config: dict[str, Any]) -> Family:
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if config.get("auto_map") and not (family and family.own_code):
        raise ConfigError(f"auto_map is {config['auto_map']!r}; code from a checkpoint is never run")
    if family is None:
        raise ConfigError(f"model_type is {kind!r}; expected one of {sorted({*FAMILIES, *_WRAPPERS})}")
    architectures = config.get("architectures") or [family.architecture]
    if [str(name).lower() for name in architectures] != [family.architecture.lower()]:
        raise ConfigError(f"architectures is {architectures!r}; expected a causal language model")
    return family


def _check_keys(path: Path, config: dict[str, Any], family: Family) -> None:
    """Refuses keys that may change the mathematics and are neither mapped nor at their only value."""
    known = _MAPPED | family.keys | _HARMLESS
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


def _map(path: Path, config: dict[str, Any], family: Family) -> ModelConfig:
    vocabulary, width, heads = (
        integer(config, key) for key in ("vocab_size", "hidden_size", "num_attention_heads")
    )
    kv_heads = config.get("num_key_value_heads")
    head_size = _head_size(config, width, heads)
    theta, rope, context = read_rope(path, config, family.rope_types)
    fields = family.read(config)
    if "feed_forward" not in fields:
        fields["feed_forward"] = integer(config, "intermediate_size")
    return ModelConfig(
        vocabulary=vocabulary,
        layers=integer(config, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=heads if kv_heads is None else integer(config, "num_key_value_heads"),
        head_size=head_size,
        context=context,
        norm_epsilon=number(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope=rope,
        rotary_size=_rotary_size(config, head_size, family),
        tied_head=flag(config, "tie_word_embeddings"),
        **fields,
    )


def _rotary_size(config: dict[str, Any], head_size: int, family: Family) -> int | None:
    """How many dimensions of a head are rotated, rounded down as in transformers; None for all of them."""
    key, rope = "partial_rotary_factor", rope_of(config)
    share = number(rope if rope.get(key) is not None else config, key, 1.0)
    if share != 1.0 and key not in family.keys:
        raise ConfigError(f"rope_parameters.{key} is {share}; expected 1.0")
    return None if share == 1.0 else int(head_size * share)


def _head_size(config: dict[str, Any], width: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return integer(config, "head_dim")
    if width % heads:
        raise ConfigError(f"hidden_size is {width}; expected a multiple of num_attention_heads {heads}")
    return width // heads
