"""Special and added tokens that are stated beside a `tokenizer.json`, joined to its own.

They stand in `tokenizer_config.json`, or in the older `special_tokens_map.json` and `added_tokens.json`. What
counts among them is transformers' to say (5.24: `PreTrainedTokenizerBase._from_pretrained` and
`TokenizersBackend.__init__`). The one idea: a stated token is added to the pipeline, which gives it other
flags or the next free id, whatever id was stated. What is special in one place is so whatever another says.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from .errors import CheckpointError
from .files import read_json
from .generation import token_text

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAP_FILE, _ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_OWN_NAME = re.compile(r"(?!add_)\w+_token")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def add_stated_tokens(path: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Adds to `tokenizer` what `config`, the JSON object of `path`, and its neighbours state.

    Returns:
      The texts of named tokens: `bos_token`, `eos_token` and the like.

    Raises:
      CheckpointError: a file is damaged, or states something that is no token.
    """
    extra = _extra(config)
    if "added_tokens_decoder" in config:
        table = _table(path, config["added_tokens_decoder"])
    else:
        older, stated = _read(path.with_name(_MAP_FILE)), any(key in config for key in _EXTRA)
        config = {**config, **older}
        usual = (token for name, token in _named(config).items() if name in _NAMED)
        special = {token.content for token in (*usual, *extra)}
        extra = extra if stated else _extra(older)
        table = _older_table(path.with_name(_ADDED_FILE), special) | tokenizer.get_added_tokens_decoder()
    named = _named(config)
    _add(tokenizer, table, named, extra)
    return {name: token.content for name, token in named.items()}


def _add(
    tokenizer: Tokenizer,
    table: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken],
    extra: Iterable[AddedToken],
) -> None:
    """The table's tokens in the order of their ids, then special ones that nothing else states."""
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
    if not isinstance(entries, dict) or not all(key.isascii() and key.isdecimal() for key in entries):
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
    """Tokens by name: the usual ones, and a model's own, such as `image_token`."""
    extra = config.get("extra_special_tokens")
    stated = {**config, **(extra if isinstance(extra, dict) else {})}
    names = dict.fromkeys((*_NAMED, *(name for name in stated if _OWN_NAME.fullmatch(name))))
    found = {name: _special(stated.get(name)) for name in names}
    return {name: token for name, token in found.items() if token is not None}


def _extra(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a name; the second of the two keys is what older versions call them."""
    listed = next((config[key] for key in _EXTRA if config.get(key)), ())
    listed = listed.values() if isinstance(listed, dict) else listed
    found = map(_special, listed if isinstance(listed, Iterable) else ())
    return [token for token in found if token is not None]


def _special(value: Any) -> AddedToken | None:
    """A special token that is stated as a text, or as an object with flags."""
    text = token_text(value)
    return (
        None
        if text is None
        else _token(text, {**(value if isinstance(value, dict) else {}), "special": True})
    )


def _as_special(token: AddedToken) -> AddedToken:
    return _token(token.content, {flag: getattr(token, flag) for flag in _FLAGS} | {"special": True})


def _token(text: str, flags: Mapping[str, Any]) -> AddedToken:
    return AddedToken(text, **{flag: bool(flags[flag]) for flag in _FLAGS if flag in flags})
