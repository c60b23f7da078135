"""Which schemas something finite satisfies: those that do not are taken out, before the compiler meets them.

A grammar of a schema that needs itself goes on for ever, or stops nowhere. The one idea is the least fixpoint
of context-free grammars (Hopcroft and Ullman 1979, 4.4): what has an end without a reference has one; then
what has one by way of those. A schema is taken for satisfiable wherever that is not decided here, so none
that something satisfies is refused; patterns and bounds are the compiler's to judge.
"""

from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..errors import SchemaError
from .json_schema import LISTS, MAPS, SINGLE, Schema, parts

Ends = Callable[[Any], bool]


def finite(schema: Schema) -> Schema:
    """The schema with `false` in place of every part that nothing finite satisfies.

    Args:
      schema: as `json_schema.followable` gives it.

    Raises:
      SchemaError: nothing finite satisfies it, or a `$ref` in it leads back to itself.
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
        raise SchemaError("Unsatisfiable schema: nothing finite satisfies it", ())
    kept = {name: _pruned(part, ends) for name, part in definitions.items() if name in ending}
    pruned = _pruned(root, ends)
    return pruned | {"$defs": kept} if kept and isinstance(pruned, dict) else pruned


def _fill(ending: set[str], definitions: dict[str, Schema], ends: Ends) -> None:
    """Adds the names of all definitions that end; each is tried again when one that it uses does."""
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
    """Whether something finite satisfies it, as far as is known of the definitions."""
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
    """The schema of a property, where no pattern may have a say."""
    properties = part.get("properties", {})
    if name in properties:
        return properties[name]
    return True if part.get("patternProperties") else part.get("additionalProperties", True)


def _first_items(part: dict[str, Any], count: int) -> list[Schema]:
    """The schemas of so many items; that of further ones once."""
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
    """Raises SchemaError for a definition that is nothing but, perhaps by way of others, itself."""
    try:
        TopologicalSorter({name: set(_same(part)) for name, part in definitions.items()}).prepare()
    except CycleError:
        raise SchemaError("a '$ref' in it leads back to itself", ()) from None


def _same(part: Any) -> Iterator[str]:
    """The definitions that whatever satisfies a schema must satisfy, too."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield _name(part)
        for member in part.get("allOf", ()):
            yield from _same(member)
