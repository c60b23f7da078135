"""Mistral's `tekken.json` as a `tokenizers` pipeline: for models published without a `tokenizer.json`.

The file lists byte sequences by rank, as tiktoken does, and control tokens; ids of control tokens come first
(mistral-common: `Tekkenizer`). The one idea: a rank is the order in which pairs are merged, so the merges of
a byte sequence are all its divisions into two that have a rank themselves.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from ..errors import CheckpointError
from ..files import read_json
from ..values import brief
from .detokenizer import BYTE_ALPHABET
from .tokenizer_parts import surround

TEKKEN_FILE = "tekken.json"

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""The texts of the named tokens."""

_OLDER = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] "
    "[/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()
"""The control tokens of files that do not list them."""


def read_tekken(path: Path) -> Tokenizer:
    """The tokenizer that a `tekken.json` describes; it begins a text with `<s>`, as mistral-common does.

    Raises:
      CheckpointError: the file is damaged.
    """
    stated = read_json(path)
    config = stated.get("config")
    pattern = config.get("pattern") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(pattern, str):
        raise CheckpointError(f"{path}: config.pattern is {brief(pattern)}; expected a regular expression")
    reserved = _size(path, config, "default_num_special_tokens")
    size = _size(path, config, "default_vocab_size") - reserved
    special = _special(path, stated.get("special_tokens"), reserved)
    ranks = _ranks(path, stated.get("vocab"), size)
    return _pipeline(path, pattern, special, ranks)


def _size(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value < 2**31:
        raise CheckpointError(f"{path}: config.{key} is {brief(value)}; expected a positive integer")
    return value


def _special(path: Path, listed: Any, reserved: int) -> list[str]:
    """The texts of the control tokens by id; ids without one have `<SPECIAL_n>`."""
    texts = [*_OLDER, *(f"<SPECIAL_{n}>" for n in range(len(_OLDER), reserved))][:reserved]
    if listed is None:
        return texts
    texts = [f"<SPECIAL_{n}>" for n in range(reserved)]
    for entry in listed if isinstance(listed, list) else [listed]:
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if type(rank) is not int or not 0 <= rank < reserved or not isinstance(entry.get("token_str"), str):
            raise CheckpointError(
                f"{path}: special_tokens has {brief(entry)}; expected a rank below {reserved} and a text"
            )
        texts[rank] = entry["token_str"]
    return texts


def _ranks(path: Path, listed: Any, size: int) -> dict[bytes, int]:
    """The byte sequences that are used, with their ranks; the first 256 are the single bytes."""
    if not isinstance(listed, list) or len(listed) < size:
        found = len(listed) if isinstance(listed, list) else brief(listed)
        raise CheckpointError(f"{path}: vocab has {found} entries; expected {size} or more")
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(listed[:size]):
        try:
            ranks[base64.b64decode(entry["token_bytes"], validate=True)] = rank
        except (KeyError, TypeError, binascii.Error):
            raise CheckpointError(
                f"{path}: entry {rank} of vocab is {brief(entry)}; expected token_bytes in base64"
            ) from None
    if len(ranks) != size or any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointError(f"{path}: vocab repeats an entry or lacks a byte; expected every byte once")
    return ranks


def _pipeline(path: Path, pattern: str, special: list[str], ranks: Mapping[bytes, int]) -> Tokenizer:
    letters = {byte: chr(point) for point, byte in BYTE_ALPHABET.items()}
    written = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    vocabulary = {written[piece]: len(special) + rank for piece, rank in ranks.items()}
    vocabulary |= {text: index for index, text in enumerate(special)}
    merges = [
        (written[piece[:cut]], written[piece[cut:]])
        for piece in ranks
        if vocabulary[written[piece]] >= len(special)
        for cut in _cuts(piece, ranks)
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: config.pattern is not readable ({brief(str(error))})") from None
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    surround(tokenizer, NAMED["bos_token"], None)
    return tokenizer


def _cuts(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Where a byte sequence may have been merged, in the order of the parts' ranks."""
    cuts = [cut for cut in range(1, len(piece)) if piece[:cut] in ranks and piece[cut:] in ranks]
    return sorted(cuts, key=lambda cut: (ranks[piece[:cut]], ranks[piece[cut:]]))
