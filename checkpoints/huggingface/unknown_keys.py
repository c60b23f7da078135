"""Whether a key of a config.json that nothing here knows can change what a Llama computes.

transformers' Llama ignores every such key, so most are bookkeeping: generation settings, training, older
versions. But a model published as a Llama that is none computes with some of them, and computed without, it
still talks. The rule, by the words of the name (split at `_` and `.`):

1. A generation setting, and a name with a word of `_BESIDE` (training, losses, kernels, number formats), is
   bookkeeping.
2. Else a name with a word that begins as one of `_TOUCHES` says (scales, caps, norms, biases, gates, rope,
   windows, sparsity, experts, quantisation, adapters, other kinds of layers) is mathematics, unless its value
   says that there is nothing of the kind, or names what a Llama has anyway.
3. Else it is bookkeeping. Sizes need no word here: weights of another shape are refused as such.
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
"""Beginnings of words."""

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
"""What a value may name that a Llama has anyway."""

_NEUTRAL_AT_ONE = re.compile(r"scal|mult|factor|ratio|alpha|temperature|pct|percent")
_IN_ATTENTION = re.compile(r"attn|attention|softmax|query|qk")
"""Beginnings of words: here a scale of 1 replaces that of 1/sqrt(head size), and a norm is one that a Llama
has not."""


def may_change_the_mathematics(key: str, value: Any) -> bool:
    """Whether a Llama with this unknown key may be another model than without it; see the module."""
    words = re.split(r"[^a-z0-9]+", key.lower())
    if key in _SIZES | GENERATION_KEYS or _OUTPUTS.fullmatch(key) or any(map(_BESIDE.fullmatch, words)):
        return False
    touching = [word for word in words if _TOUCHES.match(word)]
    return bool(touching) and not _says_nothing(words, value)


def _says_nothing(words: list[str], value: Any) -> bool:
    within = any(map(_IN_ATTENTION.match, words))
    if isinstance(value, str):
        text = value.lower()
        return text in _NOTHING or (text in _LLAMAS and not (within and text.startswith("rms")))
    if type(value) in (int, float) and value == 1 and not within:
        return any(map(_NEUTRAL_AT_ONE.match, words))
    return not value
