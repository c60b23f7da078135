"""The rotary part of a Hugging Face `config.json`: `rope_theta` and the scaling, in the old and new format.

transformers 5 writes one `rope_parameters` object; earlier versions wrote `rope_theta` and `rope_scaling`.
The semantics are those of transformers' `modeling_rope_utils` (5.24), including its defaults; a key that it
does not read for a rope type is logged and ignored, as in transformers.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ...model.config import RopeKind, RopeScaling
from ...model.errors import ConfigError
from ..notes import note
from ..values import brief, flag, integer, number, numbers

_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
    },
}  # fmt: skip
"""Every rope type that we compute, with the keys that it reads."""

_ALL_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
    "max_position_embeddings",
}  # fmt: skip
"""Further keys that any type may have."""


_GROWTH = "llama_4_scaling_beta"
_OLDER_TYPES = {"su": "longrope"}


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """The object with the rotary parameters; empty if there is none.

    Raises:
      ConfigError: it is no object.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"rope_scaling is {brief(rope)}; expected an object")
    return rope


def read_rope(
    path: Path, config: dict[str, Any], names: Mapping[str, str]
) -> tuple[float, RopeScaling | None, int]:
    """`(rope_theta, scaling, usable context)` of a config.json.

    Args:
      path: for log lines. names: the family's own names of rope types.

    Raises:
      ConfigError: a rope type that is not implemented, or an invalid number.
    """
    rope, context = rope_of(config), integer(config, "max_position_embeddings")
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = {**_OLDER_TYPES, **names}.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(f"rope_type is {brief(kind)}; expected one of {sorted(_KEYS)}")
    grows = config["model_type"] == "ministral3"
    for key in rope.keys() - _KEYS[kind] - _ALL_KEYS - ({_GROWTH} if grows else set()):
        note(f"{path}: rope_parameters.{key} is {brief(rope[key])}; rope type {kind!r} does not use it")
    theta = number(rope if rope.get("rope_theta") is not None else config, "rope_theta", 10_000.0)
    if kind == "default":
        return theta, None, context
    original = context if kind == "dynamic" else _original_context(config, rope, context)
    derived = kind == "longrope" or "factor" in rope  # for yarn, not if it is absent
    if kind in ("yarn", "longrope") and derived and rope.get("factor") is None:
        rope = {**rope, "factor": context / original}
    scaling = _scaling(cast(RopeKind, kind), rope, original)
    if grows and rope.get(_GROWTH):
        scaling = replace(scaling, query_growth=number(rope, _GROWTH))
    return theta, scaling, scaling.reach(context)


def _original_context(config: dict[str, Any], rope: dict[str, Any], context: int) -> int:
    """The trained context: in the config or its rope parameters, otherwise max_position_embeddings."""
    key = "original_max_position_embeddings"
    place = next((place for place in (config, rope) if place.get(key) is not None), None)
    return context if place is None else integer(place, key)


def _scaling(kind: RopeKind, rope: dict[str, Any], original: int) -> RopeScaling:
    factor = number(rope, "factor")
    if kind == "llama3":
        low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
        if high <= low:
            raise ConfigError(f"high_freq_factor is {high}; expected more than low_freq_factor {low}")
        return RopeScaling(
            kind=kind, factor=factor, original_context=original, low_frequency=low, high_frequency=high
        )
    if kind == "yarn":
        return _yarn(rope, factor, original)
    if kind == "longrope":
        return RopeScaling(
            kind=kind,
            factor=factor,
            original_context=original,
            short_factors=numbers(rope, "short_factor"),
            long_factors=numbers(rope, "long_factor"),
            attention_factor=_attention_factor(rope),
        )
    return RopeScaling(kind=kind, factor=factor, original_context=original)


def _yarn(rope: dict[str, Any], factor: float, original: int) -> RopeScaling:
    """A `yarn` scaling; as in transformers, a beta or mscale of zero counts as absent."""
    both = bool(rope.get("mscale") and rope.get("mscale_all_dim"))
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=number(rope, "beta_fast", 32.0) if rope.get("beta_fast") else 32.0,
        beta_slow=number(rope, "beta_slow", 1.0) if rope.get("beta_slow") else 1.0,
        attention_factor=_attention_factor(rope),
        mscale=number(rope, "mscale") if both else None,
        mscale_all_dim=number(rope, "mscale_all_dim") if both else None,
        truncate=flag(rope, "truncate") if "truncate" in rope else True,
    )


def _attention_factor(rope: dict[str, Any]) -> float | None:
    return None if rope.get("attention_factor") is None else number(rope, "attention_factor")
