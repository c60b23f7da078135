"""The tokenizer and chat template of a GGUF, as a `tokenizers` pipeline.

llama.cpp (`llama-vocab.cpp`) defines the meaning of the metadata: `gpt2` is byte-level BPE with the first
split named in `tokenizer.ggml.pre` (`gguf_splits`); `llama` is SentencePiece's BPE with scores and byte
fallback. An unknown split is refused by name, because a wrong one still gives plausible, but worse text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from ..errors import CheckpointError
from ..notes import note
from ..tokenization.tokenizer_folder import named_templates
from ..tokenization.tokenizer_parts import TokenizerParts, surround
from ..values import brief
from .gguf_splits import SPLITS

_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1
_TEMPLATE = "tokenizer.chat_template"

_END_TEXTS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "[e~[",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "\u2581<EOT>", "[EOT]",
    "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
}  # fmt: skip
"""Tokens that llama.cpp treats as end tokens because of their text, whatever their type and the metadata are
(`special_eog_ids`); they are control tokens. Tokens that end a piece of code there (`<|file_sep|>` and
similar ones) do not end a turn."""

_NO_ENDS = (
    ({"<|return|>", "<|call|>"}, "<|end|>"),
    ({"<|flush|>", "<|call|>"}, "<|end|>"),
    ({"<|flush|>", "<|calls|>"}, "<|end|>"),
    ({"<|return|>", "<|calls|>"}, "<|end|>"),
    ({"<|tool_response>"}, "</s>"),
)
"""If a vocabulary has the first tokens, the second one is not an end token, as in llama.cpp."""


def read_gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> TokenizerParts:
    """Builds the tokenizer that `metadata` describes.

    Raises:
      CheckpointError: an unknown tokenizer model or split, or lists that contradict each other.
    """
    tokens, kinds = _tokens(path, metadata)
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        tokenizer, add_bos = _byte_level(path, metadata, tokens)
    elif model == "llama":
        tokenizer, add_bos = _sentencepiece(path, metadata, tokens, kinds), True
    else:
        raise CheckpointError(f"{path}: tokenizer.ggml.model is {model!r}; expected 'gpt2' or 'llama'")
    _add_tokens(tokenizer, tokens, kinds)
    special = _special(path, metadata, tokens)
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos))
    add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    first, last = special.get("bos_token") if add_bos else None, special.get("eos_token") if add_eos else None
    if first or last:
        surround(tokenizer, first, last)
    template = metadata.get(_TEMPLATE)
    return TokenizerParts(
        tokenizer,
        special,
        template if isinstance(template, str) else None,
        end_ids(path, metadata),
        _named_templates(metadata),
    )


def _named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates `tokenizer.chat_template.NAME`; `tokenizer.chat_templates` only lists the names."""
    keys = [key for key in metadata if key.startswith(f"{_TEMPLATE}.")]
    named = [{"name": key.removeprefix(f"{_TEMPLATE}."), "template": metadata[key]} for key in keys]
    return named_templates(named)


def end_ids(path: Path, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a reply: those in the metadata, then tokens that are known by their text."""
    tokens, _ = _tokens(path, metadata)
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    named = [_id(path, metadata, f"tokenizer.ggml.{key}", len(tokens)) for key in keys]
    texts = _end_texts(tokens)
    known = [i for i, text in enumerate(tokens) if text in texts]
    return tuple(dict.fromkeys([i for i in named if i is not None] + known))


def _end_texts(tokens: list[str]) -> set[str]:
    """The texts of a vocabulary that are end tokens."""
    found = _END_TEXTS.intersection(tokens)
    return found - {other for signs, other in _NO_ENDS if signs <= found}


def _tokens(path: Path, metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(type(token) is str for token in tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens is missing; expected a list of texts")
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens holds a token twice")
    kinds = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.token_type; expected {len(tokens)} entries")
    ends = _end_texts(tokens)
    mistyped = [text for text, kind in zip(tokens, kinds, strict=True) if text in ends and kind != _CONTROL]
    if mistyped:
        note(f"{path}: {', '.join(mistyped)}: not of type control; still used as end tokens")
    return tokens, [_CONTROL if text in ends else kind for text, kind in zip(tokens, kinds, strict=True)]


def _id(path: Path, metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    """The token id under a key; None if there is none, or no such token."""
    value = metadata.get(key)
    if value is None or (type(value) is int and 0 <= value < count):
        return value
    note(f"{path}: {key} is {value!r}; expected less than {count}; it is not used")
    return None


def _special(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {
        name: _id(path, metadata, f"tokenizer.ggml.{key}_token_id", len(tokens)) for name, key in keys.items()
    }
    return {name: tokens[i] for name, i in ids.items() if i is not None}


def _byte_level(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    split = SPLITS.get(pre) if isinstance(pre, str) else None
    if split is None:
        raise CheckpointError(f"{path}: tokenizer.ggml.pre is {pre!r}; expected one of {', '.join(SPLITS)}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    listed = metadata.get("tokenizer.ggml.merges", [])
    if not isinstance(listed, list) or not all(type(merge) is str for merge in listed):
        raise CheckpointError(f"{path}: tokenizer.ggml.merges is {brief(listed)}; expected a list of texts")
    merges = [_pair(path, merge, vocabulary) for merge in listed]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole_words))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        splits + [pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.begins


def _pair(path: Path, merge: str, vocabulary: dict[str, int]) -> tuple[str, str]:
    cut = merge.find(" ", 1)
    left, right = merge[:cut], merge[cut + 1 :]
    if cut < 0 or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        raise CheckpointError(f"{path}: tokenizer.ggml.merges has {merge!r}; its parts are not tokens")
    return left, right


def _sentencepiece(path: Path, metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.scores; expected {len(tokens)} entries")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    normal = {token: scores[i] for i, token in enumerate(tokens) if kinds[i] == _NORMAL}
    unknown = _special(path, metadata, tokens).get("unk_token", tokens[0])
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(normal, vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + strip)
    return tokenizer


def _merges(scores: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that joins into a third, best score first: SentencePiece's order."""
    found = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in scores and right in scores:
                found.append((-score, vocabulary[token], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    def chosen(kind: int) -> list[str]:
        return [token for token, own_kind in zip(tokens, kinds, strict=True) if own_kind == kind]

    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in chosen(_CONTROL)]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in chosen(_USER_DEFINED)])
