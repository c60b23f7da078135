"""A client's JSON schema -> the same schema in the keywords that the grammar compiler supports.

Clients send what their libraries produce: annotations, keywords of other vocabularies, keywords with values
that restrict nothing. The one idea: a keyword is followed, or it restricts nothing and is dropped, or it is
refused with its place and the reason; a keyword that restricts is never dropped. Definitions are collected in
one place, so that the readers of the result (`finite.py`, the compiler) find schemas only at known places.

Source: JSON Schema 2020-12 (Core and Validation) and, for keywords that it no longer has, draft 7.
"""

import re
from collections.abc import Iterator
from typing import Any

from ..errors import SchemaError
from .json_schema_keywords import (
    APPLIED,
    Place,
    admits,
    as_list,
    as_mapping,
    check_names,
    never,
    read_bounds,
    read_constants,
    read_format,
    read_multiple,
    read_unevaluated,
    refuse_the_rest,
    shown,
)
from .json_schema_one_of import exclusive
from .json_schema_references import resolve

Schema = dict[str, Any] | bool

MOST_SCHEMAS = 5_000
"""Maximum number of schemas within one schema; that many are read in a fraction of a second."""
DEEPEST = 100
"""Maximum number of keys on the path to a schema within one; the compiler reads 127 levels."""

_COPIED = frozenset(
    "type minLength maxLength pattern minItems maxItems minProperties maxProperties required".split()
)
MAPS = ("properties", "patternProperties")
LISTS = ("allOf", "anyOf", "prefixItems")
SINGLE = ("items", "additionalProperties")
"""Where a schema that `followable` returns contains schemas."""
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required", "minProperties")


def followable(schema: Schema, *, closed: bool = False) -> Schema:
    """The schema without keywords that restrict nothing; its definitions are in `$defs`.

    Args:
      closed: objects without a rule for further properties have none.

    Raises:
      SchemaError: not a schema, or it has a restriction that cannot be followed.
    """
    return _Reader(schema).read(closed)


class _Reader:
    """Reads one document. References are read after everything before them, without nested calls."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._names: dict[tuple[str, bool, tuple[str, ...]], str] = {}
        self._waiting: list[tuple[str, str, bool, tuple[str, ...]]] = []
        self._count = 0
        self._multiple = 1

    def read(self, closed: bool) -> Schema:
        root = self._schema(self._document, (), closed)
        definitions: dict[str, Schema] = {}
        while self._waiting:
            name, pointer, shut, required = self._waiting.pop()
            target = require(resolve(self._document, pointer, ()), required)
            definitions[name] = self._schema(target, (pointer,), shut)
        if not definitions or isinstance(root, bool):
            return root
        return root | {"$defs": definitions}

    def _schema(self, schema: Any, place: Place, closed: bool) -> Schema:
        self._count += 1
        if self._count > MOST_SCHEMAS:
            raise SchemaError(f"it contains more than {MOST_SCHEMAS} schemas", ())
        if len(place) > DEEPEST:
            raise SchemaError(f"it is nested deeper than {DEEPEST} keys", place[:4])
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(f"a schema must be an object or a boolean, not {shown(schema)}", place)
        if never(schema):
            return False
        if "$dynamicRef" in schema or "$recursiveRef" in schema:
            raise SchemaError("'$dynamicRef' and '$recursiveRef' cannot be followed; use '$ref'", place)
        check_names(schema, place)
        kept = {name: value for name, value in schema.items() if name in _COPIED}
        kept |= self._applied(schema, place, closed)
        kept |= self._nested(schema, place, closed)
        read_bounds(schema, kept, place)
        self._multiple = read_multiple(schema, kept, place, self._multiple)
        read_constants(schema, kept, place)
        read_format(schema, kept, place)
        self._read_names(schema, kept, place, closed)
        read_unevaluated(schema, kept, place)
        refuse_the_rest(schema, place)
        if closed and _may_close(kept):
            kept["additionalProperties"] = False
        return kept

    def _applied(self, schema: dict[str, Any], place: Place, closed: bool) -> dict[str, Any]:
        """`$ref`, `allOf`, `anyOf`, `oneOf`. An object that another schema restricts as well is not
        closed."""
        given = [name for name in ("$ref", *APPLIED) if name in schema]
        alone = len(given) == 1 and not any(name in schema for name in _OF_OBJECTS)
        applied: dict[str, Any] = {}
        for name in given:
            at = (*place, name)
            if name == "$ref":
                applied |= self._reference(schema[name], at, closed and alone)
                continue
            members = as_list(schema[name], at)
            shut = closed and alone and (name != "allOf" or len(members) == 1)
            if name == "oneOf":
                read = self._exclusive(members, at, shut)
                name = "anyOf" if "anyOf" not in schema else name
            else:
                read = [self._schema(member, (*at, n), shut) for n, member in enumerate(members)]
            if name == "anyOf":
                applied[name] = read
            else:
                applied.setdefault("allOf", []).extend(read if name == "allOf" else [{"anyOf": read}])
        return applied

    def _exclusive(self, members: list[Any], place: Place, closed: bool) -> list[Schema]:
        """The alternatives of a `oneOf`, narrowed so that no two can be valid at once."""
        narrowing = exclusive(members, lambda pointer: resolve(self._document, pointer, place))
        if narrowing is None:
            raise SchemaError(
                "'oneOf' is not permitted if two alternatives may be valid at once; expected 'anyOf', or a "
                "property with a different 'const' in each",
                place,
            )
        read: list[Schema] = []
        for n, (member, names) in enumerate(zip(members, narrowing, strict=True)):
            at = (*place, n)
            if isinstance(member, dict) and "$ref" in member and names:
                read.append(self._reference(member["$ref"], at, closed, names))
            else:
                read.append(self._schema(require(member, names), at, closed))
        return read

    def _reference(
        self, pointer: Any, place: Place, closed: bool, required: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        if not isinstance(pointer, str):
            raise SchemaError(f"'$ref' must be a string, not {shown(pointer)}", place)
        resolve(self._document, pointer, place)
        key = (pointer, closed, required)
        if key not in self._names:
            name = re.sub(r"\W", "_", pointer.rpartition("/")[2]) or "root"
            taken = set(self._names.values())
            self._names[key] = name if name not in taken else f"{name}_{len(taken)}"
            self._waiting.append((self._names[key], *key))
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _nested(self, schema: dict[str, Any], place: Place, closed: bool) -> dict[str, Any]:
        """Schemas of properties and of items."""
        kept: dict[str, Any] = {}
        for name in MAPS:
            if name in schema:
                members = as_mapping(schema[name], (*place, name)).items()
                kept[name] = {key: self._schema(value, (*place, name, key), closed) for key, value in members}
        if isinstance(schema.get("items"), list):  # before 2020-12
            schema = schema | {"prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
        if "prefixItems" in schema:
            members = enumerate(as_list(schema["prefixItems"], (*place, "prefixItems")))
            kept["prefixItems"] = [self._schema(m, (*place, "prefixItems", n), closed) for n, m in members]
        for name in SINGLE:
            if name in schema:
                kept[name] = self._schema(schema[name], (*place, name), closed)
        return kept

    def _read_names(self, schema: dict[str, Any], kept: dict[str, Any], place: Place, closed: bool) -> None:
        """`propertyNames`, if it restricts: as properties, or as a pattern of additional ones."""
        at, names = (*place, "propertyNames"), schema.get("propertyNames", True)
        if isinstance(names, dict) and "$ref" in names and isinstance(names["$ref"], str):
            names = resolve(self._document, names["$ref"], at)
        rule = self._schema(names, at, closed)
        if rule is True or (isinstance(rule, dict) and rule.keys() <= {"type"} and admits(rule, "string")):
            return
        only = _only_names(rule)
        if only is None or "patternProperties" in kept:
            raise SchemaError("'propertyNames' is not permitted except with an 'enum' or a 'pattern'", at)
        rest, named = kept.get("additionalProperties", True), kept.get("properties", {})
        if isinstance(only, list):
            forbidden = {name: False for name in named if name not in only}
            kept["properties"] = dict.fromkeys(only, rest) | named | forbidden
        elif named:
            raise SchemaError("'propertyNames' with a 'pattern' is not permitted with 'properties'", at)
        else:
            kept["patternProperties"] = {only: rest}
        kept["additionalProperties"] = False


def _only_names(rule: Schema) -> list[str] | str | None:
    """The names that a schema for names allows, or their pattern; None for any other schema."""
    if isinstance(rule, bool) or not admits(rule, "string"):
        return None
    given = rule.keys() - {"type"}
    if given == {"pattern"} and isinstance(rule["pattern"], str):
        return rule["pattern"]
    if given == {"enum"} or given == {"const"}:
        names = rule["enum"] if given == {"enum"} else [rule["const"]]
        return [name for name in names if isinstance(name, str)]
    return None


def parts(schema: Schema) -> Iterator[tuple[Place, Schema]]:
    """The schemas within a schema that `followable` returned, with their places."""
    if isinstance(schema, bool):
        return
    for name in MAPS:
        yield from (((name, key), part) for key, part in schema.get(name, {}).items())
    for name in LISTS:
        yield from (((name, n), part) for n, part in enumerate(schema.get(name, ())))
    yield from (((name,), schema[name]) for name in SINGLE if name in schema)


def require(schema: Any, names: tuple[str, ...]) -> Any:
    """An object's schema with these properties required as well."""
    if not names or not isinstance(schema, dict):
        return schema
    return schema | {"required": [*schema.get("required", ()), *names]}


def _may_close(kept: dict[str, Any]) -> bool:
    of_object = "properties" in kept or ("type" in kept and admits(kept, "object"))
    return of_object and "additionalProperties" not in kept and not any(a in kept for a in ("$ref", *APPLIED))
