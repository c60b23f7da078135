"""Tokens that other files than tokenizer.json state: as transformers' AutoTokenizer reads the same folder."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from distaff.checkpoints.tokenization.tokenizer_parts import surround
from distaff.checkpoints.tokenizer import ChatTokenizer, load_tokenizer

from ..making import byte_level

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")
PIPELINE = byte_level()
"""Has 310 tokens, three of them special, and two added ones that are not."""
CONTENTS = ["<|im_end|>", "<|endoftext|>", "<tool>", "<|mark|>", "<new>", "<other>", "the", "[PAD]"]
PROBES = [
    "x<new>y <other>\n<tool> the <|mark|> dog<|im_end|> [PAD]",
    "<|endoftext|> the",
    " <new> <other> x",
    "",
]

FLAGS = st.fixed_dictionaries(
    {flag: st.booleans() for flag in ("lstrip", "rstrip", "normalized", "single_word", "special")}
)
TEXT = st.sampled_from(CONTENTS)
TABLE = st.dictionaries(
    st.integers(0, 320).map(str),
    st.builds(lambda text, flags: {"content": text, **flags}, TEXT, FLAGS),
    max_size=4,
)
NAMED = st.dictionaries(st.sampled_from(NAMES), TEXT, max_size=4)
LISTED = st.lists(TEXT, max_size=3, unique=True)
EXTRA = st.just({}) | st.one_of(
    st.builds(lambda listed: {"additional_special_tokens": listed}, LISTED),
    st.builds(lambda listed: {"extra_special_tokens": listed}, LISTED),
    st.builds(lambda text: {"extra_special_tokens": {"audio_token": text}}, TEXT),
)
CONFIG = st.builds(
    lambda named, flags, extra, more: named | flags | extra | more,
    NAMED,
    st.dictionaries(st.sampled_from(["add_bos_token", "add_eos_token"]), st.booleans()),
    EXTRA,
    st.fixed_dictionaries({}, optional={"added_tokens_decoder": TABLE}),
)
OLDER = st.fixed_dictionaries(
    {},
    optional={
        "special_tokens_map.json": st.builds(
            lambda named, listed: named | listed,
            st.dictionaries(
                st.sampled_from(NAMES[:4]),
                TEXT | st.builds(lambda text, flags: {"content": text} | flags, TEXT, FLAGS),
            ),
            st.fixed_dictionaries({}, optional={"additional_special_tokens": LISTED}),
        ),
        "added_tokens.json": st.dictionaries(TEXT, st.integers(0, 320), max_size=3),
    },
)


def write(folder: Path, config: dict[str, Any], pipeline: Tokenizer = PIPELINE, **files: Any) -> Path:
    """Writes a folder with a tokenizer and the files beside it."""
    pipeline.save(str(folder / "tokenizer.json"))
    files["config.json"] = {"model_type": "llama"}
    files["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def same(ours: ChatTokenizer, theirs: Any) -> None:
    """Checks that encoding, decoding and named tokens are equal."""
    for text in PROBES:
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
    assert ours.vocabulary == len(theirs)
    every = [*range(len(theirs))]
    assert ours.decode(every) == theirs.decode(every, skip_special_tokens=True)
    assert ours.special_tokens == theirs.special_tokens_map


def contradicts_itself(config: dict[str, Any], older: dict[str, Any]) -> bool:
    """Whether a token with a name and flags has a second name.

    Then transformers' comparison of texts with tokens decides which flags count; no model has such tokens.
    """
    stated = {**config, **older.get("special_tokens_map.json", {})}
    values: list[Any] = [stated[name] for name in NAMES if name in stated]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = stated.get(name, [])
        values += listed.values() if isinstance(listed, dict) else listed
    texts = [value["content"] if isinstance(value, dict) else value for value in values]
    return any(isinstance(value, dict) and texts.count(value["content"]) > 1 for value in values)


@settings(max_examples=60, deadline=None)
@given(config=CONFIG, older=OLDER)
def test_tokens_are_those_of_transformers(config: dict[str, Any], older: dict[str, Any]) -> None:
    """For all files and contents: new tokens, other flags, names, and tokens around a text."""
    assume(not contradicts_itself(config, older))
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), config, **older)
        same(load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(
    "flags", [{}, {"add_eos_token": True}, {"add_eos_token": False}, {"add_bos_token": False}]
)
@pytest.mark.parametrize("surrounded", [(None, None), ("<|im_start|>", None), ("<|im_start|>", "<|im_end|>")])
def test_only_the_pipeline_adds_tokens_around_a_text(
    tmp_path: Path, flags: dict[str, bool], surrounded: tuple[str | None, str | None]
) -> None:
    """With a tokenizer.json, `add_bos_token` and `add_eos_token` have no effect."""
    pipeline = Tokenizer.from_str(PIPELINE.to_str())
    if any(surrounded):
        surround(pipeline, *surrounded)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **flags}
    ours = load_tokenizer(write(tmp_path, config, pipeline))
    same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))
    expected = [pipeline.token_to_id(text) for text in surrounded if text]
    assert [token for token in ours.encode("the dog") if token in ours.special_ids] == expected


def test_a_stated_special_token_is_not_shown(tmp_path: Path) -> None:
    """And it ends a reply, if it is the end token that only tokenizer_config.json states."""
    end = {"content": "<end>", "lstrip": False, "normalized": False, "rstrip": False, "special": True}
    ours = load_tokenizer(write(tmp_path, {"eos_token": "<end>", "added_tokens_decoder": {"312": end}}))
    assert ours.encode("<end>") == [312] and ours.eos_ids == (312,)
    assert ours.decode([*ours.encode("the"), 312]) == "the" and ours.special_id("<end>") == 312


def test_an_end_token_beyond_the_models_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not one of the model's end tokens, which is logged once."""
    end = {"content": "<end>", "special": True}
    folder = write(tmp_path, {"eos_token": "<end>", "added_tokens_decoder": {"312": end}})
    (tmp_path / "config.json").write_text('{"vocab_size": 312, "eos_token_id": 2}')
    assert load_tokenizer(folder).eos_ids == load_tokenizer(folder).eos_ids == (2,)
    (remark,) = caplog.records
    assert "the end token is 312" in remark.getMessage()


def test_stated_tokens_are_kept(tmp_path: Path) -> None:
    """What `save` writes is read back unchanged."""
    (tmp_path / "again").mkdir()
    config = {"pad_token": "[PAD]", "image_token": "<image>", "extra_special_tokens": ["<new>"]}
    ours = load_tokenizer(write(tmp_path, config))
    ours.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert (again.special_ids, again.special_tokens) == (ours.special_ids, ours.special_tokens)
    assert (
        again.encode(PROBES[0]) == ours.encode(PROBES[0]) and ours.special_tokens["image_token"] == "<image>"
    )


def test_names_that_are_not_of_tokens_are_only_added(tmp_path: Path) -> None:
    """A name in a file cannot replace a variable that templates receive."""
    named = {"messages": "<a>", "chat_template": "<b>", "boi": "<c>", "audio_token": "<d>"}
    ours = load_tokenizer(
        write(tmp_path, {"extra_special_tokens": named, "chat_template": "{{ audio_token }}"})
    )
    assert ours.special_tokens == {"audio_token": "<d>"} and ours.render([{"role": "user"}]) == "<d>"
    assert all(ours.special_id(text) is not None for text in named.values())
