"""Streamed text equals decoded text, and no piece has an incomplete character."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.tokenization.detokenizer import Detokenizer, TokenBytes

from ..making import TEXTS, byte_level, sentencepiece

TOKENIZERS = {
    "byte level": byte_level(),
    "sentencepiece": sentencepiece(),
    "metaspace": sentencepiece("first"),
}
BYTES = {name: TokenBytes(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def stream(token_bytes: TokenBytes, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(token_bytes, prompt)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", [*TEXTS, "", " a", "  a", "Hello the dog", "👩‍👩‍👧‍👦 🇩🇪 é", "\n\n"])
def test_text_comes_back(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    pieces = stream(BYTES[name], ids)
    assert "".join(pieces) == TOKENIZERS[name].decode(ids)
    if name != "metaspace":  # which treats a text's first space as its prefix
        assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(name: str, text: str) -> None:
    """All of Unicode, compared with the library's decoding."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(stream(BYTES[name], ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["byte level"])
@given(ids=st.lists(st.integers(0, 320), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_ids(name: str, ids: list[int]) -> None:
    """Any bytes, including invalid UTF-8 and ids without a token, as the library decodes the whole."""
    assert "".join(stream(BYTES[name], ids)) == TOKENIZERS[name].decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(ids=st.lists(st.integers(0, 290), max_size=30), cut=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_streams_are_prefixes(name: str, ids: list[int], cut: int) -> None:
    """The text after some tokens is a prefix of the whole text, whatever follows."""
    whole = "".join(stream(BYTES[name], ids))
    assert whole.startswith("".join(stream(BYTES[name], ids)[:cut]))


@given(raw=st.binary(max_size=20))
def test_bytes_in_bytes_out(raw: bytes) -> None:
    """Byte tokens of invalid UTF-8: one replacement character for each maximal invalid part."""
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in raw]
    assert "".join(stream(BYTES["sentencepiece"], ids, prompt=[tokenizer.token_to_id("▁the")])) == raw.decode(
        "utf-8", "replace"
    )


def test_a_character_in_four_pieces() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert stream(BYTES["sentencepiece"], ids) == ["", "", "", "🙂", ""]
    assert stream(BYTES["sentencepiece"], ids[:3]) == ["", "", "", "\ufffd"]


def test_words_never_run_together() -> None:
    """SentencePiece writes " dog" as "▁dog", also at the beginning of a text, where the space is only a
    prefix."""
    tokenizer, token_bytes = TOKENIZERS["sentencepiece"], BYTES["sentencepiece"]
    the, dog, bos = (tokenizer.token_to_id(text) for text in ("▁the", "▁dog", "<s>"))
    assert "".join(stream(token_bytes, [the, dog])) == "the dog"
    assert "".join(stream(token_bytes, [bos, the, dog])) == "the dog"
    assert "".join(stream(token_bytes, [dog], prompt=[bos, the])) == " dog"
    assert "".join(stream(token_bytes, [the], prompt=[bos])) == "the"


@pytest.mark.parametrize(
    "name, token, expected",
    [
        ("byte level", "Ġ", b" "),
        ("byte level", "Ã", b"\xc3"),
        ("byte level", "<tool>", b"<tool>"),
        ("byte level", "<|im_end|>", None),
        ("sentencepiece", "▁the", b" the"),
        ("sentencepiece", "<0xE2>", b"\xe2"),
        ("sentencepiece", "<s>", None),
    ],
)
def test_token_bytes(name: str, token: str, expected: bytes | None) -> None:
    number = TOKENIZERS[name].token_to_id(token)
    assert number is not None and BYTES[name](number) == expected


def test_ids_without_a_token() -> None:
    """A padded embedding can produce ids that the tokenizer does not have; they have no text."""
    assert BYTES["byte level"](100_000) is None


@pytest.mark.parametrize(
    "decoder", [None, decoders.WordPiece(), decoders.Strip(" ", 2, 0), decoders.Replace("x", "y")]
)
def test_unknown_decoders_are_refused(decoder: decoders.Decoder | None) -> None:
    tokenizer = Tokenizer(byte_level().model)
    tokenizer.decoder = decoder
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: decoder"):
        TokenBytes(tokenizer)
