"""A tokenizer from a folder: `tokenizer.json`, else `tekken.json`; tokens that other files state; templates.

The pipeline is used as it is, including the tokens that it adds around a text: with a `tokenizer.json`,
`add_bos_token` and `add_eos_token` have no effect, as in transformers 5. Vocabularies without a
either (only a SentencePiece model) are refused: a pipeline for one would be a guess.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import CheckpointError
from ..files import read_json
from ..generation import read_generation
from .stated_tokens import add_stated_tokens
from .tekken import NAMED, TEKKEN_FILE, read_tekken
from .tokenizer_parts import TokenizerParts

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"

_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


def read_tokenizer_folder(folder: Path) -> TokenizerParts:
    """Reads the tokenizer in a Hugging Face folder or a store.

    Raises:
      CheckpointError: there is no tokenizer.json or tekken.json, or it or a file beside it is damaged.
    """
    path = folder / CONFIG_FILE
    config = read_json(path) if path.exists() else {}
    if (folder / TEKKEN_FILE).exists() and not (folder / TOKENIZER_FILE).exists():
        tokenizer, config = read_tekken(folder / TEKKEN_FILE), {**NAMED, **config}
    else:
        tokenizer = _read_pipeline(folder / TOKENIZER_FILE)
    special = add_stated_tokens(path, config, tokenizer)
    end = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    templates = _read_templates(folder, config)
    return TokenizerParts(
        tokenizer,
        special,
        templates.pop("default", None),
        read_generation(folder, [] if end is None else [end]).eos_ids,
        templates,
    )


def _read_pipeline(path: Path) -> Tokenizer:
    if not path.exists():
        raise CheckpointError(f"{path}: missing; expected this file, or {TEKKEN_FILE} beside it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as a tokenizer ({reason})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name. If there are files, only a missing `default` comes from
    tokenizer_config.json."""
    stated = named_templates(config.get("chat_template"))
    paths = {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).exists():
        paths["default"] = folder / TEMPLATE_FILE
    files = {name: read_template_file(path) for name, path in paths.items() if _TEMPLATE_NAME.fullmatch(name)}
    return {name: stated[name] for name in stated if name == "default" or not files} | files


def named_templates(stated: Any) -> dict[str, str]:
    """Chat templates by name: a text is `default`, a list holds objects of `name` and `template`."""
    if isinstance(stated, str):
        return {"default": stated}
    entries = [entry for entry in stated if isinstance(entry, dict)] if isinstance(stated, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries}
    return {
        name: template
        for name, template in named.items()
        if isinstance(name, str) and isinstance(template, str) and _TEMPLATE_NAME.fullmatch(name)
    }


def read_template_file(path: Path) -> str:
    """A Jinja template's source. Raises CheckpointError if the file is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as a chat template ({type(error).__name__})") from None
