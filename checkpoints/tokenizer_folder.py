"""A tokenizer from a folder: `tokenizer.json`, `tokenizer_config.json`, and the chat template's places.

The pipeline is taken as it is written. Vocabularies without a `tokenizer.json` (a bare SentencePiece model)
are refused: building a pipeline from one is a guess.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import CheckpointError
from .files import read_json
from .generation import read_generation, token_text
from .tokenizer_parts import TokenizerParts, surround

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_tokenizer_folder(folder: Path) -> TokenizerParts:
    """Reads the tokenizer in a Hugging Face folder or a store.

    Raises:
      CheckpointError: there is no tokenizer.json, or it or its neighbours are damaged.
    """
    tokenizer = _read_pipeline(folder / TOKENIZER_FILE)
    path = folder / CONFIG_FILE
    config = read_json(path) if path.exists() else {}
    special = {name: text for name in NAMED_TOKENS if (text := token_text(config.get(name))) is not None}
    _apply_ends(path, config, tokenizer, special)
    ends = read_generation(folder).eos_ids
    return TokenizerParts(tokenizer, special, _read_template(folder, config), ends)


def _read_pipeline(path: Path) -> Tokenizer:
    if not path.exists():
        raise CheckpointError(f"{path}: missing; a tokenizer is read from this file only")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as a tokenizer ({reason})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _apply_ends(path: Path, config: dict[str, Any], tokenizer: Tokenizer, special: dict[str, str]) -> None:
    """An explicit add_bos_token or add_eos_token overrides the pipeline's own, as in transformers."""
    wanted = {name: config.get(f"add_{name}") for name in ("bos_token", "eos_token")}
    if all(value is None for value in wanted.values()):
        return
    first, last = (special.get(name) if value else None for name, value in wanted.items())
    for text in (first, last):
        if text is not None and tokenizer.token_to_id(text) is None:
            raise CheckpointError(f"{path}: {text!r} is not a token of {TOKENIZER_FILE}")
    surround(tokenizer, first, last)


def _read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The file wins over tokenizer_config.json, where several may stand by name: then `default`."""
    if (folder / TEMPLATE_FILE).exists():
        return read_template_file(folder / TEMPLATE_FILE)
    stated = config.get("chat_template")
    if isinstance(stated, list):
        named = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
        stated = named.get("default")
    return stated if isinstance(stated, str) else None


def read_template_file(path: Path) -> str:
    """A Jinja template's source. Raises CheckpointError where the file is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as a chat template ({type(error).__name__})") from None
