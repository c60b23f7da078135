"""A model's end tokens and its recommended sampling.

Read from `generation_config.json` and related files, and written in the same form into our store. The one
idea: a model ends at *every* id that any of its files calls an end token. No value here prevents a model from
loading: a value that cannot be used, and a recommendation that has no parameter here, is logged.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .files import read_json
from .notes import note
from .values import brief

GENERATION_FILE = "generation_config.json"

_LIMITS = {
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
"""The recommendations that are used, each with the range of the parameter of that name."""

_NEUTRAL: dict[str, Any] = {
    "bad_words_ids": None, "begin_suppress_tokens": None, "constraints": None, "diversity_penalty": 0.0,
    "dola_layers": None, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "exponential_decay_length_penalty": None,
    "force_words_ids": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "guidance_scale": 1.0, "length_penalty": 1.0,
    "max_length": 20, "max_new_tokens": None, "max_time": None, "min_length": 0, "min_new_tokens": None,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "penalty_alpha": None, "renormalize_logits": False, "sequence_bias": None, "stop_strings": None,
    "suppress_tokens": None, "token_healing": False, "top_h": None, "typical_p": 1.0,
    "watermarking_config": None,
}  # fmt: skip
"""The recommendations that are not used, each with the value that has no effect (transformers'
`GenerationConfig`). The operator and the request determine how long an answer may be."""

GENERATION_KEYS = {*_LIMITS, *_NEUTRAL, "do_sample", "early_stopping", "use_cache", "use_mtp"}
"""The keys of generation_config.json, which older config.json files have too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """The sampling that a checkpoint recommends; None if it recommends nothing.

    Attributes:
      eos_ids: every token id that ends a reply, at least those of generation_config.json, config.json and
        the tokenizer's end token; empty for a model that never ends by itself.
      temperature: 0 if the checkpoint has `do_sample: false`.
      top_p, top_k, min_p, repetition_penalty: as in a request.
    """

    eos_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def to_json(self) -> bytes:
        """The same with the keys of generation_config.json."""
        greedy = self.temperature == 0
        values = {
            "eos_token_id": list(self.eos_ids),
            "do_sample": False if greedy else None,
            "temperature": None if greedy else self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        stated = {key: value for key, value in values.items() if value is not None}
        return (json.dumps(stated, indent=2) + "\n").encode()


def read_generation(folder: Path, tokenizer_ends: Sequence[int] = ()) -> GenerationDefaults:
    """The defaults of a Hugging Face folder or a store; none if the file is damaged.

    Args:
      tokenizer_ends: the end token of a built tokenizer, in addition to the one that its files state.

    Raises:
      CheckpointError: config.json or the tokenizer's files are not readable.
    """
    stated = _read_stated(folder)
    ends = _end_ids(folder, stated, tokenizer_ends)
    return GenerationDefaults(eos_ids=ends, **_recommended(folder, stated))


def read_recommended(folder: Path) -> dict[str, Any]:
    """The sampling fields of `GenerationDefaults` that a folder's generation_config.json recommends."""
    return _recommended(folder, _read_stated(folder))


def _recommended(folder: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    values = read_sampling(folder / GENERATION_FILE, stated)
    return values | {"temperature": 0.0} if stated.get("do_sample") is False else values


def _read_stated(folder: Path) -> dict[str, Any]:
    """The object in generation_config.json. A damaged file counts as absent, as in transformers."""
    path = folder / GENERATION_FILE
    try:
        return read_json(path) if path.exists() else {}
    except CheckpointError as error:
        note(f"{error}; its end tokens and sampling defaults are not used")
        return {}


def read_sampling(path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of `GenerationDefaults`; what is not used is logged with `path`."""
    for key, neutral in _NEUTRAL.items():
        if (value := stated.get(key)) is not None and value != neutral:
            note(f"{path}: {key} is {brief(value)}; it is not used")
    return {key: _number(path, stated, key) for key in _LIMITS}


def _number(path: Path, stated: Mapping[str, Any], key: str) -> float | None:
    """A number in its range; a `top_k` of 50.0 is 50."""
    value, (low, high) = stated.get(key), _LIMITS[key]
    if value is None:
        return None
    whole = key == "top_k"
    if type(value) in (int, float) and low <= value <= high and not (whole and value != int(value)):
        return int(value) if whole else value
    note(f"{path}: {key} is {brief(value)}; expected {low} to {high}; it is not used")
    return None


def _end_ids(folder: Path, stated: dict[str, Any], tokenizer_ends: Sequence[int]) -> tuple[int, ...]:
    """Every id that a file calls an end token and the model can generate."""
    config = folder / "config.json"
    model = read_json(config) if config.exists() else {}
    text = model.get("text_config")  # of a model of text and images
    model = {**model, **text} if isinstance(text, dict) else model
    named = (
        (folder / GENERATION_FILE, token_ids(stated)),
        (config, token_ids(model)),
        (folder / "tokenizer_config.json", [*_tokenizer_end(folder), *tokenizer_ends]),
    )
    vocabulary = model.get("vocab_size")
    ids: dict[int, None] = {}
    for path, tokens in named:
        for token in tokens:
            if type(token) is int and token >= 0 and not (type(vocabulary) is int and token >= vocabulary):
                ids[token] = None
            else:
                note(f"{path}: the end token is {brief(token)}, not an id of the model; it is not used")
    return tuple(ids)


def token_ids(stated: Mapping[str, Any]) -> list[Any]:
    """The ids in `eos_token_id`: one id, a list of them or nothing."""
    value = stated.get("eos_token_id")
    return value if isinstance(value, list) else [] if value is None else [value]


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
