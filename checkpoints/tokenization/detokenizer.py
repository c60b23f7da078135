"""Token ids to text, one at a time, without incomplete characters.

Works on bytes: each token represents exact bytes, however the vocabulary spells them (GPT-2's byte alphabet,
SentencePiece's ▁ and `<0xE2>`), and one incremental UTF-8 decoder converts the stream to text. So text that
has been returned never changes, and the pieces add up to the whole text by construction. If bytes are not
UTF-8, each maximal invalid part becomes one U+FFFD (Unicode 16, section 3.9).
"""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from ..errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


def _byte_alphabet() -> dict[int, int]:
    """Code point -> byte: what GPT-2 writes for every byte (`bytes_to_unicode` in OpenAI's encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: byte for byte in plain} | {256 + i: byte for i, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()
"""The byte that each code point of a byte-level vocabulary stands for."""


class TokenBytes:
    """The bytes of every token of one vocabulary.

    Attributes:
      strips_space: whether the text of a whole sequence loses one leading space (SentencePiece's prefix).

    Raises:
      CheckpointError: the tokenizer's decoder is unknown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoders = _flatten(_decoder(tokenizer))
        kinds = {decoder["type"] for decoder in decoders}
        _check_decoders(decoders)
        self._byte_level = "ByteLevel" in kinds
        self._byte_tokens = "ByteFallback" in kinds
        self.strips_space = any(map(_strips, decoders))
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._known: dict[int, bytes | None] = {}

    def __call__(self, token: int) -> bytes | None:
        """The token's bytes; None for a special token and for an id without a token."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: int) -> bytes | None:
        text = None if token in self._special else self._tokenizer.id_to_token(token)
        if text is None:
            return None
        if self._byte_level:
            try:
                return codecs.charmap_encode(text, "strict", BYTE_ALPHABET)[0]
            except UnicodeEncodeError:  # an added token, written as it is
                return text.encode()
        if self._byte_tokens and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace(_SPACE, " ").encode()


def _decoder(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The decoder as in tokenizer.json; the whole of it, with the vocabulary, takes a tenth of a second."""
    decoder = tokenizer.decoder
    return None if decoder is None else json.loads(decoder.__getstate__())


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        raise CheckpointError("tokenizer.json: decoder is null; expected ByteLevel or SentencePiece's")
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _check_decoders(decoders: list[dict[str, Any]]) -> None:
    for decoder in decoders:
        kind = decoder["type"]
        known = {
            "ByteLevel": True,
            "Metaspace": decoder.get("replacement") == _SPACE,
            "ByteFallback": True,
            "Fuse": True,
            "Replace": decoder.get("pattern") == {"String": _SPACE} and decoder.get("content") == " ",
            "Strip": (decoder.get("content"), decoder.get("stop")) == (" ", 0)
            and decoder.get("start") in (0, 1),
        }
        if not known.get(kind, False):
            raise CheckpointError(f"tokenizer.json: decoder {kind} with {decoder} is not known")


def _strips(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return decoder["prepend_scheme"] != "never"
    return decoder["type"] == "Strip" and decoder["start"] == 1


class Detokenizer:
    """The text of one reply, token by token.

    Args:
      token_bytes: the vocabulary's bytes.
      prompt: the ids before the reply. After any text a leading space is part of the reply; at the beginning
        of the whole text it is SentencePiece's prefix and is removed.
    """

    def __init__(self, token_bytes: TokenBytes, prompt: Sequence[int] = ()) -> None:
        self._bytes = token_bytes
        self._strip = token_bytes.strips_space and not any(token_bytes(token) for token in prompt)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; special tokens have no text."""
        return self._emit(self._decoder.decode(self._bytes(token) or b""))

    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character, otherwise nothing."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if text and self._strip:
            self._strip = False
            return text.removeprefix(" ")
        return text
