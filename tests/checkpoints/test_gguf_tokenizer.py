"""The tokenizer built from a GGUF's lists gives the ids of the tokenizer the lists were written from."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.gguf_tokenizer import end_ids, read_gguf_tokenizer

from .making import SENTENCEPIECE_TOKENS, TEXTS, byte_level, byte_level_metadata, llama3_like, sentencepiece

PATH = Path("m.gguf")
HARD = [
    "", " ", "\n\n\n  x", "a\t\tb", "12345 1a2", "½ Ⅷ ٣٤", "I'LL we'Ve", "  leading", "trailing  ",
    "\r\n\r\nx",
    "\N{ZERO WIDTH SPACE}\N{NO-BREAK SPACE}", "e\N{COMBINING ACUTE ACCENT}", "<tool><|im_end|>x <|mark|>",
]  # fmt: skip


def same_ids(ours: Tokenizer, theirs: Tokenizer, text: str) -> None:
    encode = (ours.encode(text, add_special_tokens=False), theirs.encode(text, add_special_tokens=False))
    assert encode[0].ids == encode[1].ids, text


SMOLLM, LLAMA3 = byte_level(), llama3_like()
FROM_GGUF = {
    "smollm": (read_gguf_tokenizer(PATH, byte_level_metadata(SMOLLM, "smollm")).tokenizer, SMOLLM),
    "llama-bpe": (read_gguf_tokenizer(PATH, byte_level_metadata(LLAMA3, "llama-bpe")).tokenizer, LLAMA3),
}


@pytest.mark.parametrize("pre", FROM_GGUF)
@pytest.mark.parametrize("text", TEXTS + HARD)
def test_byte_level_ids(pre: str, text: str) -> None:
    same_ids(*FROM_GGUF[pre], text)


@pytest.mark.parametrize("pre", FROM_GGUF)
@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_byte_level_ids_of_any_text(pre: str, text: str) -> None:
    same_ids(*FROM_GGUF[pre], text)


def pieces(pre: str, text: str) -> list[str]:
    metadata = byte_level_metadata(SMOLLM, pre)
    pre_tokenizer = read_gguf_tokenizer(PATH, metadata).tokenizer.pre_tokenizer
    return [piece.replace("Ġ", " ") for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "pre, expected",
    [
        ("gpt-2", ["It", "'s", " 2024", ",", " a", "$=", "b", "!"]),
        ("smollm", ["It", "'s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"]),
        ("llama-bpe", ["It", "'s", " ", "202", "4", ",", " a", "$=", "b", "!"]),
        ("default", ["It", "'", "s", " ", "202", "4", ",", " a", "$=", "b", "!"]),
    ],
)
def test_splits(pre: str, expected: list[str]) -> None:
    assert pieces(pre, "It's 2024, a$=b!") == expected


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    tokenizer = sentencepiece()
    tokens = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - len(SENTENCEPIECE_TOKENS))
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return metadata | changes


SENTENCEPIECE = (read_gguf_tokenizer(PATH, sentencepiece_metadata()).tokenizer, sentencepiece())


@pytest.mark.parametrize("text", [*TEXTS, *HARD, "Hello the dog", "</s>the dog<s> the", "the  dog", "<0x41>"])
def test_sentencepiece_ids(text: str) -> None:
    same_ids(*SENTENCEPIECE, text)


def greedy(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE by its definition: join the best-scored neighbours until none are a token."""
    pieces = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(scores.get(pieces[i] + pieces[i + 1]), -i) for i in range(len(pieces) - 1)]
        best = max((pair for pair in pairs if pair[0] is not None), default=None)
        if best is None:
            break
        i = -best[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    known = [
        [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces
    ]
    return [token for tokens in known for token in tokens]


@given(text=st.text(alphabet=st.sampled_from("the dogiaHlr ▁é🙂")))
@settings(max_examples=150, deadline=None)
def test_sentencepiece_ids_of_any_text(text: str) -> None:
    same_ids(*SENTENCEPIECE, text)
    metadata = sentencepiece_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = {token: -i for i, token in enumerate(tokens) if i >= len(SENTENCEPIECE_TOKENS)}
    assert SENTENCEPIECE[0].encode(text, add_special_tokens=False).tokens == greedy(text, scores)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, [1, "▁the"]),
        ({"tokenizer.ggml.add_bos_token": False}, ["▁the"]),
        ({"tokenizer.ggml.add_eos_token": True}, [1, "▁the", 2]),
        ({"tokenizer.ggml.add_space_prefix": False}, [1, "t", "h", "e"]),
    ],
)
def test_sentencepiece_options(changes: dict[str, Any], expected: list[Any]) -> None:
    tokenizer = read_gguf_tokenizer(PATH, sentencepiece_metadata(**changes)).tokenizer
    assert tokenizer.encode("the").ids == [
        token if isinstance(token, int) else tokenizer.token_to_id(token) for token in expected
    ]


@pytest.mark.parametrize(
    "pre, add, begins", [("smollm", None, False), ("llama-bpe", None, True), ("smollm", True, True)]
)
def test_byte_level_bos(pre: str, add: bool | None, begins: bool) -> None:
    metadata = byte_level_metadata(SMOLLM, pre) | (
        {} if add is None else {"tokenizer.ggml.add_bos_token": add}
    )
    assert (read_gguf_tokenizer(PATH, metadata).tokenizer.encode("x").ids[0] == 1) == begins


def test_end_ids() -> None:
    """What the metadata names, and control tokens that llama.cpp knows by their text."""
    metadata = byte_level_metadata(SMOLLM, "smollm") | {"tokenizer.ggml.eot_token_id": 5}
    assert end_ids(PATH, metadata) == (2, 5, 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "holds a token twice"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.merges": ["Ġ zzz"]}, "tokenizer.ggml.merges holds 'Ġ zzz'"),
        ({"tokenizer.ggml.merges": ["abc"]}, "tokenizer.ggml.merges holds 'abc'"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "bos_token_id is 9999"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read_gguf_tokenizer(PATH, byte_level_metadata(SMOLLM, "smollm") | changes)
    assert str(refusal.value).startswith("m.gguf: ") and said in str(refusal.value)
