"""The rotary part of a Hugging Face `config.json`: `rope_theta` and the scaling, in the old and new places.

transformers 5 writes one `rope_parameters` object; before that there were `rope_theta` and `rope_scaling`.
The semantics are those of transformers' `modeling_rope_utils` (5.23), including its defaults.
"""

from typing import Any, cast

from ..model.config import RopeKind, RopeScaling
from ..model.errors import ConfigError
from .values import brief, flag, integer, number

_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
}  # fmt: skip
"""Every rope type that we compute, with the keys that it reads."""


def read_rope(config: dict[str, Any], context: int) -> tuple[float, RopeScaling | None, int]:
    """`(rope_theta, scaling, usable context)` of a config.json; `context`: its max_position_embeddings.

    The context is what the file says, except for `dynamic`: its scaling only begins beyond the trained
    context, so the model's own limit is `factor` times that.

    Raises:
      ConfigError: a rope type or key that we do not compute, or a number that is none.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"rope_scaling is {brief(rope)}; expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(f"rope_type is {brief(kind)}; expected one of {sorted(_KEYS)}")
    _check_keys(rope, kind)
    theta = number(rope if rope.get("rope_theta") is not None else config, "rope_theta", 10_000.0)
    if kind == "default":
        return theta, None, context
    scaling = _scaling(cast(RopeKind, kind), rope, _original_context(config, rope, kind, context))
    return theta, scaling, int(context * scaling.factor) if kind == "dynamic" else context


def _check_keys(rope: dict[str, Any], kind: str) -> None:
    for key, value in rope.items():
        if value is None or key in _KEYS[kind] | {"rope_type", "type", "rope_theta"}:
            continue
        if key == "partial_rotary_factor" and value == 1.0:
            continue
        raise ConfigError(
            f"rope_parameters.{key} is {brief(value)}; rope type {kind!r} is not computed with it"
        )


def _original_context(config: dict[str, Any], rope: dict[str, Any], kind: str, context: int) -> int:
    """The trained context: beside the rope parameters or in them, else max_position_embeddings."""
    if kind in ("linear", "dynamic"):
        return context
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
    return RopeScaling(kind=kind, factor=factor, original_context=original)


def _yarn(rope: dict[str, Any], factor: float, original: int) -> RopeScaling:
    """transformers treats a zero beta or mscale like an absent one."""
    both = bool(rope.get("mscale") and rope.get("mscale_all_dim"))
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=number(rope, "beta_fast", 32.0) if rope.get("beta_fast") else 32.0,
        beta_slow=number(rope, "beta_slow", 1.0) if rope.get("beta_slow") else 1.0,
        attention_factor=None if rope.get("attention_factor") is None else number(rope, "attention_factor"),
        mscale=number(rope, "mscale") if both else None,
        mscale_all_dim=number(rope, "mscale_all_dim") if both else None,
        truncate=flag(rope, "truncate") if "truncate" in rope else True,
    )
