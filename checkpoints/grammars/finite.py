"""Which schemas have a finite value that satisfies them; the others are removed before compilation.

The grammar of a schema that requires itself never ends. The one idea is the least fixpoint of context-free
grammars (Hopcroft and Ullman 1979, 4.4): first the schemas that end without a reference, then those that end
through these. Whatever is not decided here counts as satisfiable, so that no satisfiable schema is refused;
the compiler checks patterns and bounds.
"""

from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..errors import SchemaError
from .json_schema import LISTS, MAPS, SINGLE, Schema, parts

Ends = Callable[[Any], bool]


def finite(schema: Schema) -> Schema:
    """The schema with `false` in place of every part that has no finite value.

    Args:
      schema: as returned by `json_schema.followable`.

    Raises:
      SchemaError: no finite value satisfies it, or one of its `$ref` refers to itself.
    """
    if isinstance(schema, bool):
        return schema
    definitions: dict[str, Schema] = schema.get("$defs", {})
    _refuse_circles(definitions)
    ending: set[str] = set()

    def ends(part: Any) -> bool:
        return _ends(part, ends, ending)

    _fill(ending, definitions, ends)
    root = {name: value for name, value in schema.items() if name != "$defs"}
    if not ends(root):
        raise SchemaError("Unsatisfiable schema: no finite value satisfies it", ())
    kept = {name: _pruned(part, ends) for name, part in definitions.items() if name in ending}
    pruned = _pruned(root, ends)
    return pruned | {"$defs": kept} if kept and isinstance(pruned, dict) else pruned


def _fill(ending: set[str], definitions: dict[str, Schema], ends: Ends) -> None:
    """Adds the names of all definitions that end; each is tried again when one that it uses ends."""
    users: dict[str, list[str]] = {name: [] for name in definitions}
    for name, part in definitions.items():
        for used in set(_references(part)):
            users[used].append(name)
    waiting = list(definitions)
    while waiting:
        name = waiting.pop()
        if name not in ending and ends(definitions[name]):
            ending.add(name)
            waiting += users[name]


def _references(part: Schema) -> Iterator[str]:
    """The definitions that a schema refers to."""
    if isinstance(part, dict) and "$ref" in part:
        yield _name(part)
    for _, inner in parts(part):
        yield from _references(inner)


def _name(part: dict[str, Any]) -> str:
    return part["$ref"].removeprefix("#/$defs/")


def _ends(part: Any, ends: Ends, ending: set[str]) -> bool:
    """Whether a finite value satisfies it, as far as the definitions are known."""
    if not isinstance(part, dict):
        return part is not False
    if "$ref" in part and _name(part) not in ending:
        return False
    if not all(ends(member) for member in part.get("allOf", ())):
        return False
    if "anyOf" in part and not any(ends(member) for member in part["anyOf"]):
        return False
    if part.get("enum") == []:
        return False
    types = part.get("type", "null")
    return any(_type_ends(name, part, ends) for name in ([types] if isinstance(types, str) else types))


def _type_ends(name: str, part: dict[str, Any], ends: Ends) -> bool:
    if name == "object":
        names = part.get("required")
        return not isinstance(names, list) or all(ends(_property(part, each)) for each in names)
    if name == "array":
        least = part.get("minItems", 0)
        return not isinstance(least, int) or all(ends(each) for each in _first_items(part, least))
    return True


def _property(part: dict[str, Any], name: Any) -> Schema:
    """The schema of a property, if no pattern applies to it."""
    properties = part.get("properties", {})
    if name in properties:
        return properties[name]
    return True if part.get("patternProperties") else part.get("additionalProperties", True)


def _first_items(part: dict[str, Any], count: int) -> list[Schema]:
    """The schemas of the first `count` items; the one of further items once."""
    listed = part.get("prefixItems", [])[:count]
    return listed + [part.get("items", True)] * (count > len(listed))


def _pruned(part: Any, ends: Ends) -> Schema:
    if not isinstance(part, dict):
        return part
    if not ends(part):
        return False
    pruned = dict(part)
    for name in MAPS:
        if name in part:
            pruned[name] = {key: _pruned(value, ends) for key, value in part[name].items()}
    for name in LISTS:
        if name in part:
            pruned[name] = [_pruned(value, ends) for value in part[name]]
    for name in SINGLE:
        if name in part:
            pruned[name] = _pruned(part[name], ends)
    return pruned


def _refuse_circles(definitions: dict[str, Schema]) -> None:
    """Raises SchemaError for a definition that equals itself, directly or through others."""
    try:
        TopologicalSorter({name: set(_same(part)) for name, part in definitions.items()}).prepare()
    except CycleError:
        raise SchemaError("a '$ref' in it refers to itself", ()) from None


def _same(part: Any) -> Iterator[str]:
    """The definitions that a value of a schema must satisfy as well."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield _name(part)
        for member in part.get("allOf", ()):
            yield from _same(member)
