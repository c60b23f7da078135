"""Special and added tokens that other files state, added to those of `tokenizer.json`.

They are in `tokenizer_config.json`, or in the older `special_tokens_map.json` and `added_tokens.json`.
transformers defines their precedence (5.24: `PreTrainedTokenizerBase._from_pretrained` and
`TokenizersBackend.__init__`). The one idea: a stated token is added to the pipeline, which changes its flags
or assigns the next free id, whatever id was stated. A token that is special in one file is special.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..errors import CheckpointError
from ..files import read_json
from ..generation import token_text

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAP_FILE, _ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_OWN_NAME = re.compile(r"(?!add_)\w+_token")
_ID = re.compile("[0-9]{1,9}")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def add_stated_tokens(path: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Adds to `tokenizer` the tokens that `config`, the JSON object of `path`, and the files beside it state.

    Returns:
      The texts of named tokens: `bos_token`, `eos_token` and so on.

    Raises:
      CheckpointError: a file is damaged, or states an invalid token.
    """
    own, extra = _own(config), _extra(config)
    if "added_tokens_decoder" in config:
        table = _table(path, config["added_tokens_decoder"])
    else:
        older = _read(path.with_name(_MAP_FILE))
        usual = {name: token for name, token in _named({**config, **older}).items() if name in _NAMED}
        special = {token.content for token in (*usual.values(), *extra)}
        extra = extra if any(isinstance(config.get(key), list) for key in _EXTRA) else _extra(older)
        config = {**config, **older}
        table = _older_table(path.with_name(_ADDED_FILE), special) | tokenizer.get_added_tokens_decoder()
    named = _named(config)
    _add(tokenizer, table, named, [*map(_special, own.values()), *extra])
    return {name: token.content for name, token in named.items()}


def _add(
    tokenizer: Tokenizer,
    table: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken],
    extra: Iterable[AddedToken],
) -> None:
    """Adds the table's tokens in the order of their ids, then special tokens that are stated nowhere else."""
    own = tokenizer.get_added_tokens_decoder().values()
    known = {token.content for token in (*own, *table.values())}
    added = [token for _, token in sorted(table.items())]
    added += [token for token in (*named.values(), *extra) if token.content not in known]
    special = {token.content for token in (*own, *added) if token.special}
    special |= {token.content for token in named.values()}
    tokenizer.add_tokens([_as_special(token) if token.content in special else token for token in added])


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _table(path: Path, entries: Any) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: tokens by id."""
    if not isinstance(entries, dict) or not all(map(_ID.fullmatch, entries)):
        raise CheckpointError(f"{path}: added_tokens_decoder is {entries!r:.80}; expected tokens by id")
    for key, entry in entries.items():
        if not isinstance(entry, dict) or token_text(entry) is None:
            raise CheckpointError(
                f"{path}: added_tokens_decoder has {entry!r:.80} for {key}; expected a token"
            )
    return {int(key): _token(entry["content"], entry) for key, entry in entries.items()}


def _older_table(path: Path, special: Collection[str]) -> dict[int, AddedToken]:
    """`added_tokens.json`: ids by text, without flags."""
    entries = _read(path)
    if not all(type(token) is int and token >= 0 for token in entries.values()):
        raise CheckpointError(f"{path}: expected an object of token ids by text")
    return {
        token: AddedToken(text, normalized=text not in special, special=text in special)
        for text, token in entries.items()
    }


def _named(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Tokens by name: the usual ones, and the model's own, such as `image_token`."""
    stated = {**config, **_own(config)}
    names = dict.fromkeys((*_NAMED, *(name for name in stated if _OWN_NAME.fullmatch(name))))
    return {name: _special(stated[name]) for name in names if token_text(stated.get(name)) is not None}


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own named tokens, if listed separately; not every name is that of a token."""
    stated = config.get("extra_special_tokens")
    entries = stated.items() if isinstance(stated, dict) else ()
    return {name: value for name, value in entries if token_text(value) is not None}


def _extra(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a name; older versions use the second of the two keys."""
    listed = next((config[key] for key in _EXTRA if config.get(key) and isinstance(config[key], list)), [])
    return [_special(value) for value in listed if token_text(value) is not None]


def _special(value: Any) -> AddedToken:
    """A special token, stated as a text or as an object with flags."""
    flags = value if isinstance(value, dict) else {}
    return _token(token_text(value) or "", {**flags, "special": True})


def _as_special(token: AddedToken) -> AddedToken:
    return _token(token.content, {flag: getattr(token, flag) for flag in _FLAGS} | {"special": True})


def _token(text: str, flags: Mapping[str, Any]) -> AddedToken:
    return AddedToken(text, **{flag: bool(flags[flag]) for flag in _FLAGS if flag in flags})
