"""What makes a model stop and how it samples when a request does not say.

Read from `generation_config.json` and its neighbours, written in the same form into our store. The one
idea: a model ends at *every* id that any of its files calls an end.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .files import read_json

GENERATION_FILE = "generation_config.json"

_LIMITS = {"temperature": (0.0, 1e6), "top_p": (0.0, 1.0), "top_k": (0, 2**31 - 1), "min_p": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """The sampling a checkpoint recommends; None where it recommends nothing.

    Attributes:
      eos_ids: every token id that ends a reply, at least those of generation_config.json, config.json and
        the tokenizer's end token; empty for a model that never ends by itself.
      temperature: 0 where the checkpoint says `do_sample: false`. top_p, top_k, min_p: as in a request.

    A `repetition_penalty` is not kept: it is no part of what the engine samples by.
    """

    eos_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    def to_json(self) -> bytes:
        """The same in generation_config.json's own keys."""
        greedy = self.temperature == 0
        values = {
            "eos_token_id": list(self.eos_ids),
            "do_sample": False if greedy else None,
            "temperature": None if greedy else self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
        }
        stated = {key: value for key, value in values.items() if value is not None}
        return (json.dumps(stated, indent=2) + "\n").encode()


def read_generation(folder: Path) -> GenerationDefaults:
    """The defaults that a Hugging Face folder or a store states.

    Raises:
      CheckpointError: a value is of the wrong kind or out of range; the line names the file and key.
    """
    path = folder / GENERATION_FILE
    stated = read_json(path) if path.exists() else {}
    values = read_sampling(path, stated)
    if stated.get("do_sample") is False:
        values["temperature"] = 0.0
    return GenerationDefaults(eos_ids=_end_ids(folder, stated), **values)


def read_sampling(path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of `GenerationDefaults`; `path` is for messages.

    Raises:
      CheckpointError: a value is of the wrong kind or out of range.
    """
    return {key: _number(path, stated, key) for key in _LIMITS}


def _number(path: Path, stated: Mapping[str, Any], key: str) -> float | None:
    value, (low, high) = stated.get(key), _LIMITS[key]
    if value is None:
        return None
    kinds = (int,) if key == "top_k" else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        raise CheckpointError(f"{path}: {key} is {value!r}; expected {low} to {high}")
    return value


def _end_ids(folder: Path, stated: dict[str, Any]) -> tuple[int, ...]:
    ids = token_ids(folder / GENERATION_FILE, stated, "eos_token_id")
    config = folder / "config.json"
    if config.exists():
        ids += token_ids(config, read_json(config), "eos_token_id")
    return tuple(dict.fromkeys(ids + _tokenizer_end(folder)))


def token_ids(path: Path, config: dict[str, Any], key: str) -> list[int]:
    """The ids under `key`, which may hold one id, a list of them or nothing."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and item >= 0 for item in ids):
        raise CheckpointError(f"{path}: {key} is {value!r}; expected token ids")
    return ids


def _tokenizer_end(folder: Path) -> list[int]:
    """The id of tokenizer_config.json's eos_token, looked up among the tokenizer's added tokens."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return []
    text = token_text(read_json(path).get("eos_token"))
    if text is None or not (folder / "tokenizer.json").exists():
        return []
    added = read_json(folder / "tokenizer.json").get("added_tokens") or []
    return [token["id"] for token in _objects(added) if token.get("content") == text]


def _objects(items: Iterable[Any]) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict) and type(item.get("id")) is int]


def token_text(token: Any) -> str | None:
    """A special token's text: tokenizer files write it plainly or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
