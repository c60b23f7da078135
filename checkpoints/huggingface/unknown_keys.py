"""Whether an unknown key of a config.json can change what a Llama computes.

transformers' Llama ignores every such key, so most have no effect: generation settings, training, older
versions. But a model that is published as a Llama and is not one uses some of them, and without them it still
generates text. The rule, by the words of the name (split at `_` and `.`):

1. A generation setting, and a name with a word of `_BESIDE` (training, losses, kernels, number formats), has
   no effect.
2. Otherwise a name with a word that starts like one of `_TOUCHES` (scales, caps, norms, biases, gates, rope,
   windows, sparsity, experts, quantisation, adapters, other kinds of layers) is mathematics, unless its value
   means that the model has nothing like that, or names something that every Llama has.
3. Otherwise it has no effect. Sizes need no words here: weights of another shape are refused anyway.
"""

import re
from typing import Any

from ..generation import GENERATION_KEYS

_BESIDE = re.compile(
    r"dropout|drop|pdrop|layerdrop|loss|aux|init|initializer|std|gradient|checkpointing|train|training|"
    r"pretraining|finetuning|finetune|jitter|seed|lr|optimizer|learning|warmup|decay|smoothing|deepspeed|"
    r"penalty|ngram|beams?|sampling|logprobs|keep|implementation|internal|flash|sdpa|xformers|fused?|kernels?|"
    r"backend|compile|tensor|sequence|pipeline|fp16|bf16|fp32|float32|dtype|tokenizer|vocab|version|name|path|"
    r"dataset|cache|recompute|reset"
)
"""Whole words."""

_TOUCHES = re.compile(
    r"(act$|actfn|activation|afn|swiglu|glu|gelu|gate|gating|norm|layernorm|rms|ln$|bias|qkv|qk|kv|attn|"
    r"attention|sinks?$|window|bidirectional|cross|alibi|rope|nope|rotary|interleave|freq|theta|scal|rescal|"
    r"mult|mup|factor|ratio|alpha|temperature|soft|cap$|logit|clip|clamp|resid|parallel|skip|shar|tie|"
    r"recurrent|loop|depth|dense|layer|block|mlp|ffn|embed|emb$|expert|moe|rout|topk|scor|spars|prun|quant|"
    r"bits?$|\dbit|compress|weight|lora|peft|adapter|mtp|nextn|medusa|eagle|conv|mamba|ssm|altup|laurel|"
    r"encoder|vision|audio)"
)
"""Prefixes of words."""

_SIZES = {
    "num_layers", "n_layer", "n_layers", "num_kv_heads", "n_kv_heads", "ffn_hidden_size", "kv_channels",
    "block_size",
}  # fmt: skip
_OUTPUTS = re.compile(r"output_(attentions|scores|logits)|.*token_ids?")

_NOTHING = ("", "none", "default", "null", "false")
_LLAMAS = {
    "rms", "rmsnorm", "rms_norm", "silu", "swish", "swiglu", "rope", "rotary", "causal", "full",
    "full_attention",
}  # fmt: skip
"""Values that name something that every Llama has."""

_NEUTRAL_AT_ONE = re.compile(r"scal|mult|factor|ratio|alpha|temperature|pct|percent")
_IN_ATTENTION = re.compile(r"attn|attention|softmax|query|qk")
"""Prefixes of words: in attention a scale of 1 replaces 1/sqrt(head size), and a Llama has no norm."""


def may_change_the_mathematics(key: str, value: Any) -> bool:
    """Whether this unknown key may change what a Llama computes; see the module."""
    words = re.split(r"[^a-z0-9]+", key.lower())
    if key in _SIZES | GENERATION_KEYS or _OUTPUTS.fullmatch(key) or any(map(_BESIDE.fullmatch, words)):
        return False
    touching = [word for word in words if _TOUCHES.match(word)]
    return bool(touching) and not _has_no_effect(words, value)


def _has_no_effect(words: list[str], value: Any) -> bool:
    within = any(map(_IN_ATTENTION.match, words))
    if isinstance(value, str):
        text = value.lower()
        return text in _NOTHING or (text in _LLAMAS and not (within and text.startswith("rms")))
    if type(value) in (int, float) and value == 1 and not within:
        return any(map(_NEUTRAL_AT_ONE.match, words))
    return not value
