"""A JSON schema as clients send it -> the same schema in the keywords that the grammar compiler follows.

Clients send what their libraries emit: annotations, keywords of other vocabularies, keywords with values that
restrict nothing. The one idea: a keyword is followed, or it restricts nothing and is left out, or it is
refused with its place and the reason; none that restricts is left out. Definitions are gathered in one place,
so that whoever reads the result (`finite.py`, the compiler) meets schemas only where schemas stand.

Source: JSON Schema 2020-12 (Core and Validation) and, where a keyword is gone from there, draft 7.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from .errors import SchemaError
from .json_schema_dates import FORMATS, OWN_FORMATS
from .json_schema_one_of import exclusive

Schema = dict[str, Any] | bool
Place = tuple[str | int, ...]

MOST_SCHEMAS = 5_000
"""Schemas within one schema; so many are read in a fraction of a second."""

_COPIED = frozenset(
    "type minLength maxLength pattern minItems maxItems minProperties maxProperties required".split()
)
_APPLIED = ("allOf", "anyOf", "oneOf")
MAPS = ("properties", "patternProperties")
LISTS = ("allOf", "anyOf", "prefixItems")
SINGLE = ("items", "additionalProperties")
"""Where schemas stand in one that `followable` gives."""
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required", "minProperties")
_LARGEST = 10**18
"""Bounds of this size or more are replaced by one of 16 digits: the compiler's integers have 64 bits."""
_SIXTEEN_DIGITS = 10**16 - 1


def followable(schema: Schema, *, closed: bool = False) -> Schema:
    """The schema without what restricts nothing; its definitions are in `$defs`.

    Args:
      closed: objects that do not say whether they may have further properties have none.

    Raises:
      SchemaError: it is no schema, or restricts in a way that cannot be followed.
    """
    return _Reader(schema).read(closed)


class _Reader:
    """Reads one document. References are read when everything before them is: none of them nests a call."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._names: dict[tuple[str, bool, tuple[str, ...]], str] = {}
        self._waiting: list[tuple[str, str, bool, tuple[str, ...]]] = []
        self._count = 0

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
            raise SchemaError(f"it has more than {MOST_SCHEMAS} schemas in it", ())
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(f"a schema must be an object or a boolean, not {_shown(schema)}", place)
        if _never(schema):
            return False
        if "$dynamicRef" in schema or "$recursiveRef" in schema:
            raise SchemaError("'$dynamicRef' and '$recursiveRef' cannot be followed; use '$ref'", place)
        kept = {name: value for name, value in schema.items() if name in _COPIED}
        kept |= self._applied(schema, place, closed)
        kept |= self._nested(schema, place, closed)
        _read_bounds(schema, kept, place)
        _read_constants(schema, kept, place)
        _read_format(schema, kept, place)
        self._read_names(schema, kept, place, closed)
        _read_unevaluated(schema, kept, place)
        _refuse_the_rest(schema, place)
        if closed and _may_close(kept):
            kept["additionalProperties"] = False
        return kept

    def _applied(self, schema: dict[str, Any], place: Place, closed: bool) -> dict[str, Any]:
        """`$ref`, `allOf`, `anyOf`, `oneOf`. What another schema restricts too is not closed."""
        given = [name for name in ("$ref", *_APPLIED) if name in schema]
        alone = len(given) == 1 and not any(name in schema for name in _OF_OBJECTS)
        applied: dict[str, Any] = {}
        for name in given:
            at = (*place, name)
            if name == "$ref":
                applied |= self._reference(schema[name], at, closed and alone)
                continue
            members = _list(schema[name], at)
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
        """The alternatives of a `oneOf`, narrowed so that no two hold at once."""
        narrowing = exclusive(members, lambda pointer: resolve(self._document, pointer, place))
        if narrowing is None:
            raise SchemaError(
                "'oneOf' is not permitted where two alternatives may hold at once; expected 'anyOf', or a "
                "property in each with a 'const' of its own",
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
            raise SchemaError(f"'$ref' must be a string, not {_shown(pointer)}", place)
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
                members = _mapping(schema[name], (*place, name)).items()
                kept[name] = {key: self._schema(value, (*place, name, key), closed) for key, value in members}
        if isinstance(schema.get("items"), list):  # before 2020-12
            schema = schema | {"prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
        if "prefixItems" in schema:
            members = enumerate(_list(schema["prefixItems"], (*place, "prefixItems")))
            kept["prefixItems"] = [self._schema(m, (*place, "prefixItems", n), closed) for n, m in members]
        for name in SINGLE:
            if name in schema:
                kept[name] = self._schema(schema[name], (*place, name), closed)
        return kept

    def _read_names(self, schema: dict[str, Any], kept: dict[str, Any], place: Place, closed: bool) -> None:
        """`propertyNames`, where it restricts: as properties, or a pattern, of what else there may be."""
        at, names = (*place, "propertyNames"), schema.get("propertyNames", True)
        if isinstance(names, dict) and "$ref" in names and isinstance(names["$ref"], str):
            names = resolve(self._document, names["$ref"], at)
        rule = self._schema(names, at, closed)
        if rule is True or (isinstance(rule, dict) and rule.keys() <= {"type"} and _admits(rule, "string")):
            return
        known = {"type", "enum"} if isinstance(rule, dict) and "enum" in rule else {"type", "pattern"}
        if not isinstance(rule, dict) or "patternProperties" in kept or rule.keys() - known:
            raise SchemaError("'propertyNames' is not permitted but with an 'enum' or a 'pattern'", at)
        rest = kept.get("additionalProperties", True)
        if "enum" in rule:
            names = [name for name in rule["enum"] if isinstance(name, str)]
            kept["properties"] = dict.fromkeys(names, rest) | kept.get("properties", {})
        else:
            kept["patternProperties"] = {rule["pattern"]: rest}
        kept["additionalProperties"] = False


def parts(schema: Schema) -> Iterator[tuple[Place, Schema]]:
    """The schemas that one is made of, of those that `followable` gives, and where they stand in it."""
    if isinstance(schema, bool):
        return
    for name in MAPS:
        yield from (((name, key), part) for key, part in schema.get(name, {}).items())
    for name in LISTS:
        yield from (((name, n), part) for n, part in enumerate(schema.get(name, ())))
    yield from (((name,), schema[name]) for name in SINGLE if name in schema)


def resolve(document: Schema, pointer: str, place: Place) -> Any:
    """What a `$ref` refers to: a JSON Pointer (RFC 6901) or an `$anchor` within the document.

    Raises:
      SchemaError: there is nothing, or it is in another document.
    """
    base = document.get("$id") if isinstance(document, dict) else None
    local = pointer.removeprefix(base) if isinstance(base, str) else pointer
    if local and not local.startswith("#"):
        raise SchemaError(f"'$ref' '{pointer[:200]}' leads out of the schema; expected '#/…'", place)
    path = unquote(local[1:])
    if path and not path.startswith("/"):
        return _anchored(document, path, pointer, place)
    found: Any = document
    for part in path.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise _leads_nowhere(pointer, place)
    return found


def _anchored(document: Any, anchor: str, pointer: str, place: Place) -> Any:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("$anchor") == anchor:
                return value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    raise _leads_nowhere(pointer, place)


def _leads_nowhere(pointer: str, place: Place) -> SchemaError:
    return SchemaError(f"'$ref' '{pointer[:200]}' leads nowhere in the schema", place)


def require(schema: Any, names: tuple[str, ...]) -> Any:
    """An object's schema in which these properties are required, too."""
    if not names or not isinstance(schema, dict):
        return schema
    return schema | {"required": [*schema.get("required", ()), *names]}


def _never(schema: dict[str, Any]) -> bool:
    """Whether it is a way of writing that nothing is valid."""
    return "not" in schema and _always(schema["not"])


def _always(schema: Any) -> bool:
    """Whether it restricts nothing."""
    return schema is True or schema == {}


def _may_close(kept: dict[str, Any]) -> bool:
    of_object = "properties" in kept or ("type" in kept and _admits(kept, "object"))
    return (
        of_object and "additionalProperties" not in kept and not any(a in kept for a in ("$ref", *_APPLIED))
    )


def _admits(schema: Mapping[str, Any], name: str) -> bool:
    types = schema.get("type", name)
    return name == types or (isinstance(types, list) and name in types)


def _read_bounds(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """Of numbers; those beyond what the compiler can count are drawn in, where they point outwards."""
    for name in _BOUNDS:
        if name not in schema:
            continue
        value, outwards = schema[name], -1 if "inimum" in name else 1
        if name == "multipleOf" or isinstance(value, bool) or not isinstance(value, int | float):
            kept[name] = value
        elif not math.isfinite(value) or abs(value) >= _LARGEST:
            if value * outwards < 0:
                raise SchemaError(f"'{name}' {_shown(value)} is not permitted: beyond 18 digits", place)
            kept[name] = outwards * _SIXTEEN_DIGITS
        else:
            kept[name] = value


def _read_constants(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """`const` and `enum`; a number in them is a double-precision one to the compiler."""
    for name in ("const", "enum"):
        if name in schema:
            values = _list(schema[name], (*place, name)) if name == "enum" else [schema[name]]
            for value in values:
                if isinstance(value, int) and abs(value) > 2**53 and int(f"{float(value):.0f}") != value:
                    raise SchemaError(f"'{name}' {_shown(value)} is not permitted: beyond 53 bits", place)
            kept[name] = schema[name]


def _read_format(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """A format that is not known is an annotation (Validation 7.2.3)."""
    form = schema.get("format")
    if not isinstance(form, str):
        return
    if form in FORMATS:
        kept["format"] = form
    elif form in OWN_FORMATS and "pattern" in kept:
        kept.setdefault("allOf", []).append({"pattern": OWN_FORMATS[form]})
    elif form in OWN_FORMATS:
        kept["pattern"] = OWN_FORMATS[form]


def _read_unevaluated(schema: dict[str, Any], kept: dict[str, Any], place: Place) -> None:
    """`unevaluated…`: where nothing else is applied, the same as what is additional."""
    for name, same in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if _always(schema.get(name, True)):
            continue
        if schema[name] is not False or any(applicator in kept for applicator in ("$ref", *_APPLIED)):
            raise SchemaError(f"'{name}' is not permitted beside '$ref', 'allOf', 'anyOf', 'oneOf'", place)
        kept.setdefault(same, False)


def _refuse_the_rest(schema: dict[str, Any], place: Place) -> None:
    """Raises SchemaError for a keyword that restricts and cannot be followed."""
    empty = ({}, [])
    idle = {
        "uniqueItems": lambda value: value is False or schema.get("maxItems", 2) in (0, 1),
        "not": lambda value: value is False,
        "contains": lambda value: schema.get("minContains") == 0 and "maxContains" not in schema,
        "dependentRequired": lambda value: _all_empty(value, empty),
        "dependentSchemas": lambda value: _all_empty(value, (*empty, True)),
        "dependencies": lambda value: _all_empty(value, (*empty, True)),
        "if": lambda value: _always(schema.get("then", True)) and _always(schema.get("else", True)),
    }
    for name, restricts_nothing in idle.items():
        if name in schema and not restricts_nothing(schema[name]):
            raise SchemaError(f"'{name}' is not permitted: a grammar cannot express it", place)


def _all_empty(value: Any, empty: tuple[Any, ...]) -> bool:
    return isinstance(value, dict) and all(
        any(each is e or each == e for e in empty) for each in value.values()
    )


def _list(value: Any, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError(f"expected a list, not {_shown(value)}", place)
    return value


def _mapping(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError(f"expected an object, not {_shown(value)}", place)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
