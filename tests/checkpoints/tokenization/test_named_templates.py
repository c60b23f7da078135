"""Several chat templates of one model: where they come from, and which one a request gets."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import pytest
import transformers

from distaff.checkpoints.downloads import hub
from distaff.checkpoints.errors import CheckpointError
from distaff.checkpoints.gguf.gguf_tokenizer import read_gguf_tokenizer
from distaff.checkpoints.tokenizer import ChatTokenizer, TemplateError, load_tokenizer

from ..making import byte_level, byte_level_metadata

NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]
TOOL = {"type": "function", "function": {"name": "now", "description": "d", "parameters": {"type": "object"}}}
TALK = [{"role": "user", "content": "x"}]


def save(folder: Path, config: dict[str, Any], **files: str) -> Path:
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        path = folder / (
            "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return folder


def rendered(ours: ChatTokenizer, tools: list[Any] | None) -> str | None:
    """None if there is no template for it."""
    try:
        return ours.render(TALK, tools=tools)
    except TemplateError as error:
        assert "no chat template" in str(error)
        return None


@pytest.mark.parametrize(
    "config, files, plain, with_tools",
    [
        ({"chat_template": "in config"}, {}, "in config", "in config"),
        ({"chat_template": NAMED}, {}, "listed", "tools"),
        ({"chat_template": NAMED[:1]}, {}, None, "tools"),
        ({"chat_template": NAMED[1:]}, {}, "listed", "listed"),
        ({"chat_template": "in config"}, {"default": "in file"}, "in file", "in file"),
        ({"chat_template": NAMED}, {"default": "in file"}, "in file", "in file"),
        ({}, {"default": "in file", "tool_use": "in folder", "rag": "r"}, "in file", "in folder"),
        ({"chat_template": NAMED}, {"default": "in file", "tool_use": "in folder"}, "in file", "in folder"),
        ({}, {"tool_use": "in folder"}, None, "in folder"),
        ({}, {}, None, None),
    ],
)
def test_where_templates_come_from(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str], plain: str | None, with_tools: str | None
) -> None:
    """transformers uses the same ones, from the same files."""
    folder = save(tmp_path, config, **files)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for tools, expected in ((None, plain), ([TOOL], with_tools)):
        assert rendered(ours, tools) == expected
        if expected is None:
            with pytest.raises(ValueError):
                theirs.apply_chat_template(TALK, tools=tools, tokenize=False)
        else:
            assert theirs.apply_chat_template(TALK, tools=tools, tokenize=False) == expected
    assert ours.has_template == bool(plain or with_tools)


def test_a_default_in_the_config_is_kept_beside_files(tmp_path: Path) -> None:
    """transformers ignores it."""
    ours = load_tokenizer(save(tmp_path, {"chat_template": "in config"}, tool_use="in folder"))
    assert (rendered(ours, None), rendered(ours, [TOOL])) == ("in config", "in folder")


def test_a_given_template_replaces_all(tmp_path: Path) -> None:
    folder = save(tmp_path, {"chat_template": NAMED}, default="d", tool_use="t")
    (tmp_path / "given.jinja").write_text("given")
    ours = load_tokenizer(folder, tmp_path / "given.jinja")
    assert rendered(ours, None) == rendered(ours, [TOOL]) == ours.tool_template == "given"


def test_each_template_has_its_own_options(tmp_path: Path) -> None:
    """A default without tools has none for them, and a template for tools may require them."""
    tool_use = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ style }}"
    ours = load_tokenizer(save(tmp_path, {}, default="{{ messages }}", tool_use=tool_use))
    assert (ours.knows_tools, ours.knows_calls) == (True, False)
    assert (ours.chat_template, ours.tool_template) == ("{{ messages }}", tool_use)
    assert ours.template_options == {"style"}


def test_all_are_kept(tmp_path: Path) -> None:
    """By `save`, including those that are never selected, except one with a name that points outside the
    folder."""
    (tmp_path / "store").mkdir()
    listed = [*NAMED, {"name": "rag", "template": "r"}, {"name": "../../escaped", "template": "e"}]
    load_tokenizer(save(tmp_path, {"chat_template": listed})).save(tmp_path / "store")
    found = {path.stem: path.read_text() for path in tmp_path.rglob("*.jinja")}
    assert found == {"chat_template": "listed", "tool_use": "tools", "rag": "r"}
    assert rendered(load_tokenizer(tmp_path / "store"), [TOOL]) == "tools"


def test_a_template_that_is_not_text(tmp_path: Path) -> None:
    save(tmp_path, {}, tool_use="x")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"tool_use\.jinja: not readable as a chat template"):
        load_tokenizer(tmp_path)


def test_templates_of_a_gguf() -> None:
    """`tokenizer.chat_template.NAME` in addition to `tokenizer.chat_template`, as gguf's writer writes
    them."""
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "tools"}
    metadata = byte_level_metadata(byte_level(), "smollm") | named | {"tokenizer.chat_template": "plain"}
    ours = ChatTokenizer(read_gguf_tokenizer(Path("x.gguf"), metadata))
    assert (rendered(ours, None), rendered(ours, [TOOL])) == ("plain", "tools")


def test_templates_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Including those in the sub-folder, and nothing else from a sub-folder."""
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    hub.download("org/model", None, None)
    listed = [
        "config.json", "model.safetensors", "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
        "original/config.json", "onnx/model.safetensors", "model.bin", "model.py", "x/model.py", "x/y.pkl",
    ]  # fmt: skip
    kept = huggingface_hub.utils.filter_repo_objects(
        listed, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == listed[:4]
