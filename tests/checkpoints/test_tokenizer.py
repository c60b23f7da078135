"""Conversations to ids: the same ids as transformers, and no special token that the template did not
write."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from distaff.checkpoints import resolve
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.tokenization import special_tokens
from distaff.checkpoints.tokenization.chat_template import ChatTemplate
from distaff.checkpoints.tokenization.message_forms import fold_system
from distaff.checkpoints.tokenization.special_tokens import SpecialTokenEscaper
from distaff.checkpoints.tokenization.tokenizer_parts import TokenizerParts, surround
from distaff.checkpoints.tokenizer import ChatTokenizer, TemplateError, load_tokenizer

from .making import CHATML, TEXTS, byte_level, llama3_like, sentencepiece

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
SP_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PARTS = {
    "byte level": TokenizerParts(byte_level(), SPECIAL, CHATML, (2,)),
    "llama 3": TokenizerParts(llama3_like(), SPECIAL, CHATML, (2,)),
    "sentencepiece": TokenizerParts(sentencepiece(), SP_SPECIAL, LLAMA2, (2,)),
    "metaspace": TokenizerParts(sentencepiece("first"), SP_SPECIAL, LLAMA2, (2,)),
}
OURS = {name: ChatTokenizer(parts) for name, parts in PARTS.items()}


def theirs(name: str) -> transformers.PreTrainedTokenizerFast:
    parts = PARTS[name]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(parts.tokenizer.to_str()),
        chat_template=parts.chat_template,
        **parts.special,
    )


THEIRS = {name: theirs(name) for name in PARTS}


def conversation(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("text", [*TEXTS, "", " x ", "12 \n\n"])
@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}])
def test_ids_equal_those_of_transformers(name: str, text: str, options: dict[str, bool]) -> None:
    messages = conversation("Hello", text, text or "y")
    wanted = {"add_generation_prompt": True, **options}
    rendered = THEIRS[name].apply_chat_template(messages, tokenize=False, **wanted)
    assert OURS[name].render(messages, **options) == rendered
    expected = THEIRS[name](rendered, add_special_tokens=False)["input_ids"]
    assert OURS[name].encode_chat(messages, **options) == expected


@pytest.mark.parametrize("name", PARTS)
@given(text=st.text())
@settings(max_examples=100, deadline=None)
def test_ids_of_any_text(name: str, text: str) -> None:
    ids = OURS[name].encode(text, add_special_tokens=False)
    assert ids == THEIRS[name](text, add_special_tokens=False)["input_ids"]
    assert OURS[name].decode(ids) == THEIRS[name].decode(ids, skip_special_tokens=True)


FRAGMENTS = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<s>", "<unk>", "<|im_", "end|>", "<", "|>",
         "<|mark|>", "system\n", "\n", " ", "the dog", "<tool>", "é🙂", "\U0010ffff", "\U000f0000",
         "[INST]", "▁the"]
    )
).map("".join)  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
@given(texts=st.tuples(FRAGMENTS, FRAGMENTS, FRAGMENTS))
@settings(max_examples=150, deadline=None)
def test_typed_special_tokens_stay_text(name: str, texts: tuple[str, str, str]) -> None:
    """A conversation has the same special ids as the same conversation with harmless contents."""
    ours = OURS[name]
    control = ours.special_ids | {
        i for i in [ours.encode("<|mark|>")[0]] if name in ("byte level", "llama 3")
    }
    ids = ours.encode_chat(conversation(*texts))
    harmless = ours.encode_chat(conversation("a", "b", "c"))
    assert [i for i in ids if i in control] == [i for i in harmless if i in control]
    assert visible(ours, ours.decode(ids)) == visible(ours, ours.render(conversation(*texts)))


def visible(tokenizer: ChatTokenizer, text: str) -> str:
    """A text without special tokens, and without spaces, which SentencePiece writes as ▁."""
    for token in tokenizer.special_ids:
        text = text.replace(tokenizer._parts.tokenizer.id_to_token(token) or "", "")
    return "".join(text.replace("▁", " ").split())


@given(
    text=st.text("abcd ", max_size=60),
    tokens=st.sets(st.text("abcd", min_size=1, max_size=4), min_size=1, max_size=6),
    piece=st.integers(1, 9),
)
def test_control_tokens_are_found_in_pieces_as_in_the_whole(text: str, tokens: set[str], piece: int) -> None:
    """However a long text is split: the same tokens as in one search, the longest first at each place."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(sorted(tokens))
    made = SpecialTokenEscaper(tokenizer)
    longest_first = sorted(made._control, key=len, reverse=True)
    whole = [match.span() for match in re.finditer("|".join(longest_first), text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(special_tokens, "_PIECE", piece)
        assert [match.span() for match in made._matches(text)] == whole
        [escaped], escapes = made.escape([{"x": text}])
    assert not any(token in escaped["x"] for token in tokens)
    assert "".join(escapes.get(character, character) for character in escaped["x"]) == text


@pytest.mark.parametrize("name", ["byte level", "llama 3", "metaspace"])
def test_escaping_one_message_does_not_change_the_others(name: str) -> None:
    """The ids around a typed special token are those of the same texts without it."""
    ours = OURS[name]
    special = ours._parts.special["eos_token"]
    typed = ours.encode_chat(conversation("Hello the dog", "is", f"x {special} y"))
    plain = ours.encode_chat(conversation("Hello the dog", "is", "x ~ y"))
    same = next(i for i, (a, b) in enumerate(zip(typed, plain, strict=False)) if a != b)
    assert ours.decode(plain[same:]).startswith("~") or ours.decode(plain[:same]).rstrip().endswith("x")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "name": "<|im_end|>"},
        {
            "role": "tool",
            "content": "x",
            "tool_calls": [{"function": {"arguments": {"<|im_end|>": "<|im_end|>"}}}],
        },
    ],
)
def test_every_text_of_a_message_is_escaped(message: dict[str, Any]) -> None:
    template = "{{ messages[0] | tojson }}<|im_end|>"
    ours = ChatTokenizer(TokenizerParts(byte_level(), SPECIAL, template, ()))
    ids = ours.encode_chat([message])
    assert [i for i in ids if i in ours.special_ids] == [2] and ids[-1] == 2
    assert json.loads(ours.decode(ids)) == message


def test_raw_prompts_may_hold_special_tokens() -> None:
    assert OURS["byte level"].encode("<|im_start|>x")[0] == 1


def test_only_the_template_begins_the_prompt(tmp_path: Path) -> None:
    """`encode` adds a raw text's beginning token; the template adds a conversation's, once."""
    pipeline = sentencepiece()
    surround(pipeline, "<s>", None)
    ours = load_tokenizer(save(tmp_path, pipeline, {**SP_SPECIAL, "chat_template": LLAMA2}))
    assert ours.encode("the")[0] == ours.bos_id == 1
    assert ours.encode("the", add_special_tokens=False)[0] != 1
    assert ours.encode_chat(conversation("the")).count(1) == 1


def save(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "has no"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_templates_that_raise(template: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTokenizer(TokenizerParts(byte_level(), SPECIAL, template, ())).encode_chat(conversation("x"))


@pytest.mark.parametrize(
    "template, folds",
    [
        (CHATML, False),
        (LLAMA2, True),
        ("{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}", True),
        ("{{ raise_exception('never') }}", False),
    ],
)
def test_whether_the_system_text_is_folded(template: str, folds: bool) -> None:
    assert ChatTemplate(template, SP_SPECIAL).folds_system == folds


def test_folding() -> None:
    system = {"role": "system", "content": "Be brief."}
    text = ChatTokenizer(PARTS["sentencepiece"]).render([system, *conversation("Hi", "Ho", "Go")])
    assert text == "<s>[INST] Be brief.\n\nHi [/INST] Ho</s>[INST] Go [/INST]"
    assert fold_system([system]) == [{"role": "user", "content": "Be brief."}]
    parts = [{"type": "text", "text": "Hi"}]
    assert fold_system([system, {"role": "user", "content": parts}]) == [
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("Be brief.", "\n\n", "Hi")]}
    ]
    assert fold_system(conversation("a")) == conversation("a") and fold_system([]) == []


def test_the_last_message_can_be_continued() -> None:
    text = OURS["byte level"].render(
        conversation("Hi", "Well"), add_generation_prompt=False, continue_final_message=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell"
    with pytest.raises(TemplateError):
        OURS["byte level"].render(conversation("Hi"), continue_final_message=True)


@pytest.mark.parametrize("name", PARTS)
def test_saved_and_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    OURS[name].save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.bos_id, again.eos_ids, again.special_ids) == (1, (2,), OURS[name].special_ids)
    assert again.vocabulary == OURS[name].vocabulary
    messages = conversation(*TEXTS)
    assert again.encode_chat(messages) == OURS[name].encode_chat(messages)
    assert again.encode("the dog") == OURS[name].encode("the dog")


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("tokenizer.json", None, "tokenizer.json: missing"),
        ("tokenizer.json", b"{}", "tokenizer.json: not readable as a tokenizer"),
        ("tokenizer.json", b"\x80\x04", "tokenizer.json: not readable"),
        ("tokenizer_config.json", b"[", "tokenizer_config.json: not readable as JSON"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "expected tokens by id"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": "x"}}', "has 'x' for 7; expected a token"),
        ("added_tokens.json", b'{"x": "y"}', "expected an object of token ids"),
        ("special_tokens_map.json", b"[]", "special_tokens_map.json: holds a JSON list"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not readable as a chat template"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    folder = save(tmp_path, byte_level(), {"chat_template": CHATML})
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        load_tokenizer(folder)
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: missing"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"gone\.jinja"):
        load_tokenizer(save(tmp_path, byte_level(), {}), tmp_path / "gone.jinja")


def test_no_jax_and_no_transformers_until_a_conversation_is_rendered(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(), {"chat_template": CHATML})
    code = (
        "import sys; from pathlib import Path; from distaff.checkpoints.tokenizer import load_tokenizer;"
        f"t = load_tokenizer(Path({str(folder)!r})); t.encode('x'); t.decode([5]);"
        "assert not {'jax', 'transformers', 'torch'} & sys.modules.keys();"
        "t.encode_chat([{'role': 'user', 'content': 'x'}]); assert not {'jax', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def smollm2() -> ChatTokenizer:
    return load_tokenizer(resolve(None))


def test_smollm2_against_its_published_pipeline(smollm2: ChatTokenizer) -> None:
    """Single digits, then GPT-2's split, as in SmolLM2's tokenizer.json."""
    reference = Tokenizer.from_str(smollm2._parts.tokenizer.to_str())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    reference.pre_tokenizer = pre_tokenizers.Sequence(split)
    texts = [
        *TEXTS,
        "It's 12345.67 ½Ⅷ٣",
        "\n\n\n  \t x",
        "日本語 한국어 العربية",
        "a" * 300,
        "<|im_start|>user\nhi",
    ]
    for text in texts:
        assert smollm2.encode(text) == reference.encode(text).ids
    assert smollm2.encode("Hello 2024") == [19556, 216, 34, 32, 34, 36]


def test_smollm2_chat(smollm2: ChatTokenizer) -> None:
    """The published model's ids for a chat, and their text."""
    ids = smollm2.encode_chat(conversation("Hello 2024"))
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello 2024<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.render(conversation("Hello 2024")) == text
    assert ids == smollm2.encode(text)
    assert (smollm2.bos_id, smollm2.eos_ids, smollm2.vocabulary) == (1, (2, 0), 49152)
    special = [i for i in ids if i in smollm2.special_ids]
    assert special == [1, 2, 1, 2, 1]
    assert [i for i in smollm2.encode_chat(conversation("<|im_end|>")) if i in smollm2.special_ids] == special
