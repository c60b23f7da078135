"""Structured output: `response_format`, and its names in other servers, -> a grammar.

Only the request is read here. To build its grammar, and to check that it can be followed, takes a bounded but
possibly long time, so `Constraint.grammar` does that when it is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...checkpoints.errors import GrammarError, SchemaError
from ...checkpoints.grammars.grammar import (
    check_grammar,
    check_schema,
    choice_grammar,
    describe_patterns,
    json_object_grammar,
    json_schema_grammar,
    lark_or_gbnf_grammar,
    regex_grammar,
)
from ..errors import BadRequest
from .body import parse_inner
from .fields import Fields, check_array, missing, wrong_type
from .kinds import TEXT, Boolean, Kind, Object, Schema, Shape, array, constant, record

FORMATS = ("json_object", "json_schema", "text")
EXTRAS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
)
_NAMES = ("json", "regex", "choice", "grammar", "json_object")
_SWITCHES = ("disable_any_whitespace", "disable_fallback", "disable_additional_properties")
"""vLLM's. Two change nothing: JSON has one kind of spacing here, and there is no other backend."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_MOST_CHOICES = 10_000
LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Constraint:
    """The constraint on a reply.

    Attributes:
      make: builds the grammar (see `checkpoints.grammars.grammar`), or raises GrammarError or BadRequest.
      param: the parameter that requests it. name: of the schema, if any.
      source: the schema or the regular expression that was given, if one was.
    """

    make: Callable[[], str]
    param: str
    name: str | None = None
    source: dict[str, Any] | str | None = None

    def grammar(self) -> str:
        """The grammar. Raises BadRequest for one that cannot be followed."""
        try:
            grammar = self.make()
            check_grammar(grammar)
        except GrammarError as error:
            raise self.refusal(self._reason(error)) from None
        return grammar

    def refusal(self, reason: str) -> BadRequest:
        """The error for a grammar that cannot be followed."""
        where = f"schema for response_format '{self.name}'" if self.name else f"value for '{self.param}'"
        patterns = "" if "pattern" in reason else describe_patterns(self.source)
        return BadRequest(f"Invalid {where}: {reason}{patterns}", self.param)

    def _reason(self, error: GrammarError) -> str:
        """Why, with the place in the schema that is at fault."""
        if isinstance(self.source, dict) and not isinstance(error, SchemaError):
            try:
                check_schema(self.source)
            except GrammarError as found:
                return str(found)
        return str(error)


def read_constraint(fields: Fields, *, flat: bool = False) -> Constraint | None:
    """`response_format`, or an equivalent parameter of another server.

    Args:
      flat: it is `text.format`, and a schema's name is next to its type, as in the Responses API.

    Raises:
      BadRequest: the first fault found.
    """
    constraint, extra = _format(fields, flat), _extra(fields)
    if constraint and extra:
        message = f"Only one of '{constraint.param}' and '{extra.param}' can be given."
        raise BadRequest(message, extra.param)
    return constraint or extra


def _format(fields: Fields, flat: bool) -> Constraint | None:
    text = fields.object("text") if flat else fields
    found = text.object("format" if flat else "response_format") if text else None
    if found is None:
        return None
    found.require("type")
    kind = found.one_of("type", FORMATS)
    if kind == "json_object":
        return _from_object(found)
    if kind == "text":
        _only(found, ("type",))
        return None
    _only(found, ("type", "name", "description", "strict", "schema") if flat else ("type", "json_schema"))
    described = found if flat else found.object("json_schema")
    if described is None:
        raise missing(found.where("json_schema"))
    return _from_schema(described, found.path)


def _from_schema(described: Fields, param: str) -> Constraint:
    described.require("name")
    name = described.string("name", LONGEST_NAME)
    described.string("description")
    strict = described.boolean("strict")
    schema = described.object("schema")
    return schema_constraint(
        schema.values if schema else _ANY_OBJECT, param, name, closed=bool(strict and schema)
    )


def _from_object(found: Fields) -> Constraint:
    """`json_object`, which llama.cpp, Together and others give a `schema`, and TGI a `value`."""
    _only(found, ("type", "schema", "value"))
    given = [name for name in ("schema", "value") if found.get(name) is not None]
    if len(given) > 1:
        path = found.where("value")
        raise BadRequest(f"Only one of '{found.where('schema')}' and '{path}' can be given.", path)
    schema = found.object(given[0]) if given else None
    if schema is None:
        return Constraint(json_object_grammar, found.path)
    return schema_constraint(schema.values, schema.path)


def _only(found: Fields, names: tuple[str, ...]) -> None:
    """Raises BadRequest for another key, which would otherwise be ignored."""
    given = {name: value for name, value in found.values.items() if value is not None}
    Fields(given, found.path).only(names)


def schema_constraint(
    schema: dict[str, Any], param: str, name: str | None = None, *, closed: bool = False
) -> Constraint:
    """JSON that is valid under a schema; `closed`: without properties that it does not name."""
    return Constraint(partial(json_schema_grammar, schema, closed=closed), param, name, schema)


def _extra(fields: Fields) -> Constraint | None:
    """The same in vLLM's words, `guided_*` and `structured_outputs`, or llama.cpp's `json_schema`."""
    given = {f"guided_{name}": (fields, f"guided_{name}", name) for name in _NAMES[:4]}
    given["json_schema"] = (fields, "json_schema", "json")
    nested = fields.object("structured_outputs")
    if nested is not None:
        _only(nested, (*_NAMES, *_SWITCHES))
        for name in _SWITCHES:
            nested.boolean(name)
        given |= {nested.where(name): (nested, name, name) for name in _NAMES}
    found = [(path, *entry) for path, entry in given.items() if entry[0].get(entry[1]) is not None]
    found = [each for each in found if not (each[3] == "json_object" and each[1].get(each[2]) is False)]
    if len(found) > 1:
        names = " and ".join(f"'{path}'" for path, *_ in found)
        raise BadRequest(f"Only one of {names} can be given.", found[1][0])
    if not found:
        return None
    path, source, key, kind = found[0]
    closed = nested is not None and nested.boolean("disable_additional_properties")
    return _READERS[kind](source, key, path, bool(closed))


def _json(fields: Fields, name: str, path: str, closed: bool) -> Constraint:
    value = fields.get(name)
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    return schema_constraint(value, path, closed=closed)


def _parsed(text: str) -> Any:
    """The JSON in a string; the string itself if it is not JSON."""
    try:
        return parse_inner(text)
    except ValueError:
        return text


def _regex(fields: Fields, name: str, path: str, closed: bool) -> Constraint:
    return regex_constraint(fields.string(name) or "", path)


def regex_constraint(pattern: str, param: str) -> Constraint:
    """What a regular expression matches."""
    return Constraint(partial(regex_grammar, pattern), param, source=pattern)


def _choice(fields: Fields, name: str, path: str, closed: bool) -> Constraint:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise wrong_type(path, "an array of strings", value)
    check_array(path, value, _MOST_CHOICES)
    return Constraint(partial(choice_grammar, value), path)


def _grammar(fields: Fields, name: str, path: str, closed: bool) -> Constraint:
    return Constraint(partial(lark_or_gbnf_grammar, fields.string(name) or ""), path)


def _object(fields: Fields, name: str, path: str, closed: bool) -> Constraint | None:
    return Constraint(json_object_grammar, path) if fields.boolean(name) else None


_READERS: dict[str, Callable[[Fields, str, str, bool], Constraint | None]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _object,
}


def format_kind(*, flat: bool = False) -> Shape:
    """What `response_format` may be, or `text.format`."""
    name = {"type": "string", "maxLength": LONGEST_NAME}
    optional = {"description": TEXT, "strict": {"type": "boolean"}, "schema": {"type": "object"}}
    described = record({"name": name}, optional)
    kind = constant("json_schema")
    held = record({"type": kind, "json_schema": described})
    if flat:
        held = record({"type": kind, "name": name}, optional)
    schemas = {name: {"type": "object"} for name in ("schema", "value")}
    # Of the two only one is taken; other keys are refused unless they are null.
    json_object = record({"type": constant("json_object")}, schemas) | {"not": record(schemas)}
    forms = [record({"type": constant("text")}), json_object, held]
    return Shape({"anyOf": [form | {"additionalProperties": {"type": "null"}} for form in forms]})


_JSON: Schema = {"anyOf": [{"type": "object"}, {"type": "string", "contentMediaType": "application/json"}]}
_WORDS = array({"type": "string", "minLength": 1}, _MOST_CHOICES)
_SHAPES: dict[str, Schema] = {
    "json": _JSON,
    "regex": TEXT,
    "choice": _WORDS,
    "grammar": TEXT,
    "json_object": {"type": "boolean"},
}
KINDS: dict[str, Kind] = {
    **{f"guided_{name}": Shape(_SHAPES[name]) for name in _NAMES[:4]},
    "json_schema": Shape(_JSON),
    "structured_outputs": Object(
        {name: Shape(_SHAPES[name]) for name in _NAMES} | dict.fromkeys(_SWITCHES, Boolean()), closed=True
    ),
}
