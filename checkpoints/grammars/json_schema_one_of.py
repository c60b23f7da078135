"""Which alternatives of a `oneOf` exclude each other.

The compiler supports `anyOf`, which is the same if no two alternatives can be valid at once. Alternatives
that differ in a property exclude each other if both require that property, as is meant by discriminated
unions: their libraries leave a tag with a default out of `required`. Reads raw schemas. The answer is
conservative: alternatives that are not known to exclude each other may be valid at once.
"""

import json
from collections.abc import Callable
from itertools import combinations
from typing import Any

Resolve = Callable[[str], Any]
Names = tuple[str, ...]

_DEEPEST = 8
"""References and alternatives that are followed before two schemas are assumed to overlap."""
_TYPES = frozenset("null boolean number string array object".split())


def exclusive(members: list[Any], resolve: Resolve) -> list[Names] | None:
    """For each alternative, the properties to require so that no two can be valid at once; None if
    impossible."""
    names: list[set[str]] = [set() for _ in members]
    for one, other in combinations(range(len(members)), 2):
        tags = _exclusion(members[one], members[other], resolve, _DEEPEST)
        if tags is None:
            return None
        names[one] |= tags
        names[other] |= tags
    return [tuple(sorted(each)) for each in names]


def _exclusion(a: Any, b: Any, resolve: Resolve, depth: int) -> set[str] | None:
    """The properties that both must require to exclude each other; None if they may overlap anyway."""
    a, b = _resolved(a, resolve), _resolved(b, resolve)
    if a is False or b is False:
        return set()
    if not isinstance(a, dict) or not isinstance(b, dict) or not depth:
        return None
    if not (_well_formed(a) and _well_formed(b)):
        return None
    if _values_differ(a, b) or not (_types(a) & _types(b)):
        return set()
    if any(_all_exclude(x, y, resolve, depth - 1) for x, y in ((a, b), (b, a))):
        return set()
    if _types(a) == _types(b) == {"object"}:
        return set() if _closed_to(a, b) or _closed_to(b, a) else _tag(a, b, resolve, depth - 1)
    return None


def _well_formed(schema: dict[str, Any]) -> bool:
    """Whether the keywords read here have the right type; the reader reports those that do not."""
    kind, required = schema.get("type", []), schema.get("required", [])
    names = [
        *([kind] if not isinstance(kind, list) else kind),
        *(required if isinstance(required, list) else [0]),
    ]
    return isinstance(schema.get("properties", {}), dict) and all(isinstance(name, str) for name in names)


def _resolved(schema: Any, resolve: Resolve) -> Any:
    for _ in range(_DEEPEST):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        schema = resolve(schema["$ref"])
    return True


def _all_exclude(a: dict[str, Any], b: dict[str, Any], resolve: Resolve, depth: int) -> bool:
    """Whether each of a's alternatives excludes b without further requirements."""
    members = a.get("anyOf", a.get("oneOf"))
    return isinstance(members, list) and all(_exclusion(each, b, resolve, depth) == set() for each in members)


def _values_differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    of_a, of_b = _values(a), _values(b)
    return of_a is not None and of_b is not None and not (of_a & of_b)


def _values(schema: dict[str, Any]) -> set[str] | None:
    """The possible values, as JSON text; None if they are not enumerated."""
    given = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(given, list):
        return None
    return {json.dumps(float(v) if type(v) is int and abs(v) < 10**308 else v, sort_keys=True) for v in given}


def _types(schema: dict[str, Any]) -> frozenset[str]:
    """The possible types; integers are numbers."""
    given = schema.get("type", [])
    types = {"number" if t == "integer" else t for t in ([given] if isinstance(given, str) else given)}
    known = [schema["const"]] if "const" in schema else schema.get("enum")
    if not types and isinstance(known, list):
        types = {_type(value) for value in known}
    return frozenset(types) & _TYPES or _TYPES


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _closed_to(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether `b` requires a property that `a` does not allow."""
    if a.get("additionalProperties") is not False or a.get("patternProperties"):
        return False
    return any(name not in a.get("properties", {}) for name in b.get("required", ()))


def _tag(a: dict[str, Any], b: dict[str, Any], resolve: Resolve, depth: int) -> set[str] | None:
    """A property in which they differ; preferably one that both require."""
    of_a, of_b = a.get("properties", {}), b.get("properties", {})
    shared = [name for name in of_a if name in of_b]
    shared.sort(key=lambda name: name not in a.get("required", ()) or name not in b.get("required", ()))
    return next(({n} for n in shared if _exclusion(of_a[n], of_b[n], resolve, depth) == set()), None)
