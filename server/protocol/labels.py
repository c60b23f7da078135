"""OpenAI's labels and settings that change no answer here; their types are checked as OpenAI checks them."""

from ..errors import BadRequest
from .fields import check_length, wrong_type
from .kinds import TEXT, Boolean, Described, Fields, Kind, Object, Schema, Shape, String, Words

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
VERBOSITIES = ("low", "medium", "high")
_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
_LONGEST_LABEL = 512
_LONGEST_NAME = 64
_MOST_PAIRS = 16

_METADATA: Schema = {
    "type": "object",
    "maxProperties": _MOST_PAIRS,
    "propertyNames": {"maxLength": _LONGEST_NAME},
    "additionalProperties": TEXT | {"maxLength": _LONGEST_LABEL},
}
CACHE_HINTS: dict[str, Kind] = {
    "prompt_cache_key": String(_LONGEST_LABEL),
    "prompt_cache_retention": String(_LONGEST_LABEL),
}
"""What `cache_hints` reads."""
_IDENTITY: dict[str, Kind] = {
    "user": String(_LONGEST_LABEL),
    "safety_identifier": String(_LONGEST_LABEL),
    **CACHE_HINTS,
    "prompt_cache_options": Object(),
    "verbosity": Words(VERBOSITIES),
    "reasoning_effort": Words(EFFORTS),
}
KINDS: dict[str, Kind] = _IDENTITY | {
    "service_tier": Words(_TIERS),
    "store": Boolean(),
    "metadata": Shape(_METADATA),
}


def check_identity(fields: Described) -> None:
    """`user` and similar labels. Raises BadRequest."""
    for name in _IDENTITY:
        fields.take(name)


def check_service_tier(fields: Described) -> None:
    """`service_tier`: every tier is the default one here. Raises BadRequest."""
    fields.take("service_tier")


def check_storage(fields: Described) -> None:
    """`store` and `metadata`. Raises BadRequest."""
    fields.take("store")
    check_metadata(fields)


def check_metadata(fields: Described) -> None:
    """`metadata`: a few pairs of short strings. Raises BadRequest."""
    metadata = fields.object("metadata")
    if metadata is None:
        return
    if (size := len(metadata.values)) > _MOST_PAIRS:
        raise BadRequest(
            f"Invalid 'metadata': too many properties. Expected an object with at most {_MOST_PAIRS} "
            f"properties, but got an object with {size} properties instead.",
            "metadata",
            "object_above_max_properties",
        )
    for name in metadata.values:
        _check_metadata_pair(metadata, name)


def _check_metadata_pair(metadata: Fields, name: str) -> None:
    if len(name) > _LONGEST_NAME:
        raise BadRequest(
            "Invalid 'metadata': property name too long. Expected a property name with maximum length "
            f"{_LONGEST_NAME}, but got a property name with length {len(name)} instead.",
            "metadata",
            "property_name_above_max_length",
        )
    value = metadata.get(name)
    if not isinstance(value, str):
        raise wrong_type(metadata.where(name), "a string", value)
    check_length(metadata.where(name), value, _LONGEST_LABEL)
