"""Single keywords of a schema: which are kept, which restrict nothing, which are refused.

Handles neither references nor schemas within schemas. Source: JSON Schema 2020-12, Validation.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ..errors import SchemaError
from .json_schema_dates import FORMATS, OWN_FORMATS

Place = tuple[str | int, ...]

APPLIED = ("allOf", "anyOf", "oneOf")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LARGEST = 2**63 - 1024
"""The largest double below 2**63. Bounds beyond are replaced by it: the compiler's integers have 64 bits."""
_SIXTEEN_DIGITS = 10**16 - 1
_MOST_STEPS = 100_000
"""The maximum of the least common multiple of all `multipleOf`. The compiler counts remainders outside its
fuel limits: that many take about a second."""


def never(schema: dict[str, Any]) -> bool:
    """Whether the schema allows nothing."""
    return "not" in schema and always(schema["not"])


def always(schema: Any) -> bool:
    """Whether the schema restricts nothing."""
    return schema is True or schema == {}


def admits(schema: Mapping[str, Any], name: str) -> bool:
    types = schema.get("type", name)
    return name == types or (isinstance(types, list) and name in types)


def check_names(schema: dict[str, Any], place: Place) -> None:
    """Raises SchemaError if `type` or `required` is not made of strings."""
    kind, required = schema.get("type", "null"), schema.get("required")
    if not isinstance(kind, str) and not _strings(kind):
        raise SchemaError(f"'type' must be a string or a list of strings, not {shown(kind)}", place)
    if isinstance(required, list) and not _strings(required):
        raise SchemaError(f"'required' must be a list of strings, not {shown(required)}", place)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def read_bounds(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """The bounds of numbers; an outward bound beyond the compiler's range is replaced by the range's
    limit."""
    for name in _BOUNDS:
        if name not in schema:
            continue
        value, outwards = schema[name], -1 if "inimum" in name else 1
        if isinstance(value, bool) or not isinstance(value, int | float):
            kept[name] = value
        elif abs(value) <= _LARGEST:
            kept[name] = _inward(value, outwards) if isinstance(value, int) else value
        elif value * outwards < 0:
            raise SchemaError(f"'{name}' {shown(value)} is not permitted: beyond 64 bits", place)
        else:
            kept[name] = outwards * _LARGEST


def _inward(value: int, outwards: int) -> int:
    """The next integer within the bound that is a double, because the compiler's bounds are doubles."""
    near = float(value)
    return int(math.nextafter(near, -outwards * math.inf) if (int(near) - value) * outwards > 0 else near)


def read_multiple(schema: dict[str, Any], kept: dict[str, Any], place: Place, others: int) -> int:
    """`multipleOf`, with bounds added, because a number may not end at a digit at which it is no multiple.

    Args:
      others: the least common multiple of the values that were read before.

    Returns:
      The same including this value.
    """
    step = schema.get("multipleOf")
    if step is None:
        return others
    kept["multipleOf"] = step
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < math.inf:
        return others
    for outwards, names in ((-1, ("minimum", "exclusiveMinimum")), (1, ("maximum", "exclusiveMaximum"))):
        if not any(name in kept for name in names):
            far = any(
                isinstance(kept.get(n), int | float) and abs(kept[n]) > _SIXTEEN_DIGITS for n in _BOUNDS
            )
            kept[names[0]] = outwards * (_LARGEST if far else _SIXTEEN_DIGITS)
    _, digits, exponent = Decimal(repr(step)).normalize().as_tuple()
    size = int("".join(map(str, digits))) * 10 ** max(int(exponent), 0)
    if math.lcm(others, size) > _MOST_STEPS:
        raise SchemaError(
            f"'multipleOf' {shown(step)} is not permitted: it costs too much; expected digits that, "
            f"with those of others in the schema, have a common multiple of at most {_MOST_STEPS:,}",
            place,
        )
    return math.lcm(others, size)


def read_constants(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """`const` and `enum`; the compiler treats numbers in them as doubles."""
    for name in ("const", "enum"):
        if name in schema:
            values = as_list(schema[name], (*place, name)) if name == "enum" else [schema[name]]
            for value in values:
                if isinstance(value, int) and abs(value) > 2**53 and not _is_double(value):
                    raise SchemaError(f"'{name}' {shown(value)} is not permitted: beyond 53 bits", place)
            kept[name] = schema[name]


def _is_double(value: int) -> bool:
    return abs(value) < 10**308 and int(float(value)) == value


def read_format(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """`format`; an unknown format is an annotation (Validation 7.2.3)."""
    form = schema.get("format")
    if not isinstance(form, str):
        return
    if form in FORMATS:
        kept["format"] = form
    elif form in OWN_FORMATS and "pattern" in kept:
        kept.setdefault("allOf", []).append({"pattern": OWN_FORMATS[form]})
    elif form in OWN_FORMATS:
        kept["pattern"] = OWN_FORMATS[form]


def read_unevaluated(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """`unevaluated…`: if no other schema is applied, the same as `additionalProperties` and `items`."""
    for name, same in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if always(schema.get(name, True)):
            continue
        if schema[name] is not False or any(applicator in kept for applicator in ("$ref", *APPLIED)):
            raise SchemaError(f"'{name}' is not permitted with '$ref', 'allOf', 'anyOf', 'oneOf'", place)
        kept.setdefault(same, False)


def refuse_the_rest(schema: dict[str, Any], place: Place) -> None:
    """Raises SchemaError for a keyword that restricts and cannot be followed."""
    empty = ({}, [])
    idle = {
        "uniqueItems": lambda value: value is False or schema.get("maxItems", 2) in (0, 1),
        "not": lambda value: value is False,
        "contains": lambda value: schema.get("minContains") == 0 and "maxContains" not in schema,
        "dependentRequired": lambda value: _all_empty(value, empty),
        "dependentSchemas": lambda value: _all_empty(value, (*empty, True)),
        "dependencies": lambda value: _all_empty(value, (*empty, True)),
        "if": lambda value: always(schema.get("then", True)) and always(schema.get("else", True)),
    }
    for name, restricts_nothing in idle.items():
        if name in schema and not restricts_nothing(schema[name]):
            raise SchemaError(f"'{name}' is not permitted: a grammar cannot express it", place)


def _all_empty(value: Any, empty: tuple[Any, ...]) -> bool:
    return isinstance(value, dict) and all(
        any(each is e or each == e for e in empty) for each in value.values()
    )


def as_list(value: Any, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError(f"expected a list, not {shown(value)}", place)
    return value


def as_mapping(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError(f"expected an object, not {shown(value)}", place)
    return value


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
