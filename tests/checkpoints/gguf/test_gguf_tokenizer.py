"""The tokenizer built from a GGUF's lists gives the same ids as the original tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.gguf.gguf_splits import SPLITS
from distaff.checkpoints.gguf.gguf_tokenizer import end_ids, read_gguf_tokenizer

from ..making import SENTENCEPIECE_TOKENS, TEXTS, byte_level, byte_level_metadata, llama3_like, sentencepiece

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


TEXT = "It's 2024, a$=b!"
PIECES = {
    "gpt-2": ["It", "'s", " 2024", ",", " a", "$=", "b", "!"],
    "smollm": ["It", "'s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"],
    "llama-bpe": ["It", "'s", " ", "202", "4", ",", " a", "$=", "b", "!"],
    "default": ["It", "'", "s", " ", "202", "4", ",", " a", "$=", "b", "!"],
    "falcon": ["It", "'", "s", " ", "202", "4", ",", " a", "$=", "b", "!"],
    "qwen2": ["It", "'s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"],
    "tekken": ["It", "'s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"],
    "gpt-4o": ["It's", " ", "202", "4", ",", " a", "$=", "b", "!"],
    "deepseek-llm": ["It", "'", "s", " ", "2024", ",", " a", "$=", "b", "!"],
    "deepseek-coder": ["It", "'", "s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"],
    "deepseek-v3": ["It", "'s", " ", "202", "4", ",", " a", "$=", "b", "!"],
    "viking": ["It's", " ", "2", "0", "2", "4", ",", " a$=b", "!"],
    "bloom": ["It's", " 2024", ",", " a$=b", "!"],
    "seed-coder": ["It", "'s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"],
    "bailingmoe": ["It", "'s", " ", "2", "0", "2", "4", ",", " a", "$=", "b", "!"],
    "minicpm5": ["It", "'s", " ", "202", "4", ",", " a", "$=", "b", "!"],
}
SAME = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 smaug-bpe dbrx chatglm-bpe glm4",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b",
    "gpt-2": "gpt2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum",
    "qwen2": "stablelm2 deepseek-r1-qwen megrez hunyuan",
    "deepseek-v3": "hunyuan-dense joyai-llm",
    "bloom": "poro-chat gpt3-finnish",
}


@pytest.mark.parametrize("pre", PIECES)
def test_splits(pre: str) -> None:
    assert pieces(pre, TEXT) == PIECES[pre]


@pytest.mark.parametrize("pre", SAME)
def test_splits_with_several_names(pre: str) -> None:
    text = TEXT + "\n\n  I'LL HelloWORLD ½٣ 12345\t x"
    assert all(pieces(name, text) == pieces(pre, text) for name in SAME[pre].split())


@pytest.mark.parametrize(
    "pre, text, expected",
    [
        ("tekken", "HelloWORLD/x\n/\n", ["Hello", "WORLD", "/x", "\n", "/\n"]),
        ("tekken", "ab CDef/\n", ["ab", " CDef", "/\n"]),
        ("gpt-4o", "we'LL CAN'T 12345", ["we'LL", " CAN'T", " ", "123", "45"]),
        ("deepseek-llm", "Hi there\n  x1 12  ", ["Hi", " there", "\n", " ", " x", "1", " ", "12", "  "]),
        ("deepseek-llm", "a.b， c", ["a", ".", "b", "，", " c"]),
        ("deepseek-llm", "世界abc", ["世界", "abc"]),
        ("deepseek-coder", "x = y12\n\n", ["x", " =", " y", "1", "2", "\n", "\n"]),
        ("deepseek-v3", "世界abc 1234.foo", ["世界", "abc", " ", "123", "4", ".foo"]),
        ("bailingmoe", "a\n\nb", ["a", "\n\n", "b"]),
        ("seed-coder", "a!\nb", ["a", "!", "\n", "b"]),
        ("minicpm5", "a1234", ["a", "123", "4"]),
    ],
)
def test_where_splits_differ(pre: str, text: str, expected: list[str]) -> None:
    table = pre_tokenizers.ByteLevel(False, use_regex=False)
    byte_level = ["".join(piece for piece, _ in table.pre_tokenize_str(part)) for part in expected]
    metadata = byte_level_metadata(SMOLLM, pre)
    found = read_gguf_tokenizer(PATH, metadata).tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in found] == byte_level


TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral Nemo's pattern, from its tokenizer.json."""


@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_tekken_splits_any_text_as_the_original_pattern(text: str) -> None:
    own = pre_tokenizers.Split(Regex(TEKKEN), "isolated").pre_tokenize_str(text)
    ours = pre_tokenizers.Split(Regex(SPLITS["tekken"].patterns[0]), "isolated").pre_tokenize_str(text)
    assert own == ours


@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_no_split_loses_a_character(text: str) -> None:
    for split in SPLITS.values():
        cuts = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
        )
        pieces = cuts.pre_tokenize_str(text)
        assert "".join(piece for piece, _ in pieces) == text


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
    """SentencePiece's BPE by its definition: merge the best-scored neighbours until no pair is a token."""
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
    "pre, add, begins",
    [
        ("smollm", None, False),
        ("llama-bpe", None, True),
        ("falcon3", None, True),
        ("tekken", None, True),
        ("smaug-bpe", None, False),
        ("smollm", True, True),
    ],
)
def test_byte_level_bos(pre: str, add: bool | None, begins: bool) -> None:
    metadata = byte_level_metadata(SMOLLM, pre) | (
        {} if add is None else {"tokenizer.ggml.add_bos_token": add}
    )
    assert (read_gguf_tokenizer(PATH, metadata).tokenizer.encode("x").ids[0] == 1) == begins


def with_tokens(*texts: str, **changes: Any) -> dict[str, Any]:
    """SmolLM2's vocabulary, with its last tokens renamed and of type normal; token 0 is the end token."""
    metadata = byte_level_metadata(SMOLLM, "smollm")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    start = len(tokens) - len(texts)
    tokens, kinds = tokens[:start] + list(texts), kinds[:start] + [1] * len(texts)
    stated = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    return metadata | stated | {"tokenizer.ggml.eos_token_id": 0} | changes


def test_end_ids() -> None:
    """The ids in the metadata, and tokens that llama.cpp knows by their text."""
    metadata = byte_level_metadata(SMOLLM, "smollm") | {"tokenizer.ggml.eot_token_id": 5}
    assert end_ids(PATH, metadata) == (2, 5, 0)


@pytest.mark.parametrize("kind", [1, 3, 4, 5])
def test_end_tokens_of_any_type(kind: int, caplog: pytest.LogCaptureFixture) -> None:
    """They are control tokens whatever type the file has: never text of a reply."""
    metadata = byte_level_metadata(SMOLLM, "smollm") | {"tokenizer.ggml.eos_token_id": 0}
    metadata["tokenizer.ggml.token_type"][2] = kind
    path = Path(f"typed{kind}.gguf")
    parts = read_gguf_tokenizer(path, metadata)
    assert parts.eos_ids == end_ids(path, metadata) == (0, 2)
    assert parts.tokenizer.encode("x<|im_end|>").ids[-1] == 2
    assert parts.tokenizer.decode([2]) == ""
    assert ("<|im_end|>: not of type control" in caplog.text) == (kind != 3)


@pytest.mark.parametrize(
    "texts, ends",
    [
        (["<|eot_id|>"], ["<|eot_id|>"]),
        (["<|eom_id|>", "<spare>"], ["<|eom_id|>"]),
        (["<EOT>", "_<EOT>", "▁<EOT>", "[EOT]"], ["<EOT>", "_<EOT>", "▁<EOT>", "[EOT]"]),
        (["<end_of_turn>", "</s>", "<eos>"], ["<end_of_turn>", "</s>", "<eos>"]),
        (["<\uff5cend▁of▁sentence\uff5c>"], ["<\uff5cend▁of▁sentence\uff5c>"]),
        (["<|end|>"], ["<|end|>"]),
        (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"]),
        (["<|tool_response>", "</s>"], ["<|tool_response>"]),
        (["<|eot|>", "<end>", "<|im_start|", "<|file_sep|>", "<reponame>"], []),
    ],
)
def test_end_tokens_that_are_known_by_their_text(texts: list[str], ends: list[str]) -> None:
    metadata = with_tokens(*texts)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in end_ids(PATH, metadata)] == ["<|endoftext|>", "<|im_end|>", *ends]


def test_a_named_token_that_does_not_exist(caplog: pytest.LogCaptureFixture) -> None:
    metadata = with_tokens(**{"tokenizer.ggml.eos_token_id": 9999, "tokenizer.ggml.bos_token_id": -1})
    parts = read_gguf_tokenizer(PATH, metadata)
    assert (parts.eos_ids, parts.special) == ((0, 2), {})
    assert "tokenizer.ggml.eos_token_id is 9999; expected less than 320" in caplog.text


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"tokenizer.ggml.pre": "kimi-k2"}, "tokenizer.ggml.pre is 'kimi-k2'"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "holds a token twice"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.merges": ["Ġ zzz"]}, "tokenizer.ggml.merges has 'Ġ zzz'"),
        ({"tokenizer.ggml.merges": ["abc"]}, "tokenizer.ggml.merges has 'abc'"),
        ({"tokenizer.ggml.merges": [3]}, "tokenizer.ggml.merges is [3]; expected a list of texts"),
        ({"tokenizer.ggml.merges": 3}, "tokenizer.ggml.merges is 3; expected a list of texts"),
        ({"tokenizer.ggml.pre": ["llama-bpe"]}, "tokenizer.ggml.pre is ['llama-bpe']"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read_gguf_tokenizer(PATH, byte_level_metadata(SMOLLM, "smollm") | changes)
    assert str(refusal.value).startswith("m.gguf: ") and reason in str(refusal.value)
