"""`tekken.json` against tiktoken's rule, written down here: the pair with the lowest rank is merged first."""

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.gguf.gguf_splits import SPLITS
from distaff.checkpoints.tokenization.tekken import TEKKEN_FILE, read_tekken
from distaff.checkpoints.tokenization.tokenizer_folder import read_tokenizer_folder

from ..making import TEXTS, byte_level

(PATTERN,) = SPLITS["tekken"].patterns
RESERVED = 30


def learned() -> list[bytes]:
    """Byte sequences by rank: all bytes, and what a trained BPE merges."""
    merges = json.loads(byte_level().to_str())["model"]["merges"]
    decode = byte_level().decoder
    pieces = [decode.decode(["".join(pair)]).encode() for pair in merges]
    pieces = [piece for piece in pieces if b"\xef\xbf\xbd" not in piece]
    return list(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *pieces]))


PIECES = learned()
RANKS = {piece: rank for rank, piece in enumerate(PIECES)}


def stated(**changes: Any) -> dict[str, Any]:
    """The contents of a file, with an entry more than is used."""
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate([*PIECES, b"not used"])
    ]
    config = {
        "pattern": PATTERN,
        "default_vocab_size": RESERVED + len(PIECES),
        "default_num_special_tokens": RESERVED,
        "version": "v3",
    }
    return {"config": config, "vocab": vocab} | changes


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(stated(**changes)))
    return path


def expected(text: str) -> list[int]:
    """The ids of a text without control tokens."""
    ids = []
    for word in regex.findall(PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode()]
        if word.encode() in RANKS:
            parts = [word.encode()]
        while True:
            pairs = [(RANKS.get(a + b, len(RANKS)), n) for n, (a, b) in enumerate(pairwise(parts))]
            rank, n = min(pairs, default=(len(RANKS), 0))
            if rank == len(RANKS):
                break
            parts[n : n + 2] = [parts[n] + parts[n + 1]]
        ids += [RESERVED + RANKS[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tekken") / TEKKEN_FILE)


@given(text=st.sampled_from(TEXTS) | st.text(max_size=40) | st.text("the dog's 12345\n🙂ß", max_size=40))
def test_ids_and_texts(path: Path, text: str) -> None:
    """Every text has tiktoken's ids, and comes back."""
    tokenizer = read_tekken(path)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(name in text for name in ("<s>", "</s>", "[INST]")):
        assert ids == expected(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode(text).ids == [1, *ids]


def test_control_tokens(path: Path, tmp_path: Path) -> None:
    """By their listed ranks, or those of older files; they are single tokens within a text."""
    tokenizer = read_tekken(path)
    assert tokenizer.encode("[INST]a[/INST]", add_special_tokens=False).ids == [3, RESERVED + ord("a"), 4]
    assert tokenizer.id_to_token(25) == "<SPECIAL_25>"
    names = [("<unk>", 0), ("<s>", 1), ("</s>", 2), ("[THINK]", 29)]
    listed = [{"rank": rank, "token_str": text, "is_control": True} for text, rank in names]
    later = read_tekken(write(tmp_path / TEKKEN_FILE, special_tokens=listed))
    assert later.token_to_id("[THINK]") == 29 and later.token_to_id("<SPECIAL_3>") == 3


def test_a_folder_without_a_tokenizer_json(path: Path, tmp_path: Path) -> None:
    """Ends with `</s>`; a tokenizer.json has precedence."""
    parts = read_tokenizer_folder(path.parent)
    assert parts.eos_ids == (2,) and parts.special["bos_token"] == "<s>" and parts.chat_template is None
    write(tmp_path / TEKKEN_FILE)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer_folder(tmp_path).tokenizer.token_to_id("[INST]") is None


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda s: s.pop("config"), "config.pattern is None"),
        (lambda s: s["config"].update(pattern="("), "config.pattern is not readable"),
        (lambda s: s["config"].update(default_vocab_size="many"), "default_vocab_size is 'many'"),
        (lambda s: s["config"].update(default_vocab_size=10**6), "entries; expected 999970 or more"),
        (lambda s: s["vocab"][7].update(token_bytes="*"), "entry 7 of vocab is"),
        (lambda s: s["vocab"].__setitem__(3, s["vocab"][4]), "vocab repeats an entry or lacks a byte"),
        (lambda s: s.update(special_tokens=[{"rank": 99}]), "special_tokens has {'rank': 99}"),
    ],
)
def test_damaged_files(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    contents = stated()
    change(contents)
    (tmp_path / TEKKEN_FILE).write_text(json.dumps(contents))
    with pytest.raises(CheckpointError) as refusal:
        read_tekken(tmp_path / TEKKEN_FILE)
    assert reason in str(refusal.value) and str(tmp_path) in str(refusal.value)
