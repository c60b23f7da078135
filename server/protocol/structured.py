"""Structured output: `response_format`, and what peers call the same, -> a grammar.

The request's JSON becomes the text of a grammar; whether it can be followed is asked of `check`, which takes
a bounded time but may take a while, so it is not done here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jiter

from ...checkpoints.errors import GrammarError
from ...checkpoints.grammar import (
    check_grammar,
    choice_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_or_gbnf_grammar,
    regex_grammar,
)
from ..errors import BadRequest
from .fields import Fields, check_array, missing, wrong_type

FORMATS = ("json_object", "json_schema", "text")
EXTRAS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
_NAMES = ("json", "regex", "choice", "grammar", "json_object")
_MOST_CHOICES = 10_000


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a reply must be.

    Attributes:
      grammar: see `checkpoints.grammar`. param: the parameter that asks for it. name: of the schema, if any.
    """

    grammar: str
    param: str
    name: str | None = None

    def check(self) -> None:
        """Raises BadRequest for a grammar that cannot be followed."""
        try:
            check_grammar(self.grammar)
        except GrammarError as error:
            where = f"schema for response_format '{self.name}'" if self.name else f"value for '{self.param}'"
            raise BadRequest(f"Invalid {where}: {error}", self.param) from None


def read_constraint(fields: Fields, *, flat: bool = False) -> Constraint | None:
    """`response_format`, or one of what peers have in its place.

    Args:
      flat: it is `text.format`, and a schema's name stands beside its type, as in the Responses API.

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
        return Constraint(json_object_grammar(), found.path)
    if kind == "text":
        return None
    described = found if flat else found.object("json_schema")
    if described is None:
        raise missing(found.where("json_schema"))
    return _from_schema(described, found.path)


def _from_schema(described: Fields, param: str) -> Constraint:
    described.require("name")
    name = described.string("name", 64)
    described.string("description")
    described.boolean("strict")
    schema = described.object("schema")
    grammar = json_schema_grammar(schema.values) if schema else json_object_grammar()
    return Constraint(grammar, param, name)


def _extra(fields: Fields) -> Constraint | None:
    """The same in vLLM's words: one of `guided_*`, or of those in `structured_outputs`."""
    given = {f"guided_{name}": (fields, f"guided_{name}", name) for name in _NAMES[:4]}
    nested = fields.object("structured_outputs")
    if nested is not None:
        nested.only(_NAMES)
        given |= {nested.where(name): (nested, name, name) for name in _NAMES}
    found = [(path, *entry) for path, entry in given.items() if entry[0].get(entry[1]) is not None]
    if len(found) > 1:
        names = " and ".join(f"'{path}'" for path, *_ in found)
        raise BadRequest(f"Only one of {names} can be given.", found[1][0])
    if not found:
        return None
    path, source, key, kind = found[0]
    grammar = _READERS[kind](source, key)
    return Constraint(grammar, path) if grammar is not None else None


def _json(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, dict):
        raise wrong_type(fields.where(name), "an object", value)
    return json_schema_grammar(value)


def _parsed(text: str) -> Any:
    """The JSON in a string; the string itself where there is none."""
    try:
        return jiter.from_json(text.encode(), allow_inf_nan=False)
    except ValueError:
        return text


def _regex(fields: Fields, name: str) -> str:
    return regex_grammar(fields.string(name) or "")


def _choice(fields: Fields, name: str) -> str:
    value, path = fields.get(name), fields.where(name)
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise wrong_type(path, "an array of strings", value)
    check_array(path, value, _MOST_CHOICES)
    return choice_grammar(value)


def _grammar(fields: Fields, name: str) -> str:
    try:
        return lark_or_gbnf_grammar(fields.string(name) or "")
    except GrammarError as error:
        raise BadRequest(f"Invalid value for '{fields.where(name)}': {error}", fields.where(name)) from None


def _object(fields: Fields, name: str) -> str | None:
    return json_object_grammar() if fields.boolean(name) else None


_READERS: dict[str, Callable[[Fields, str], Any]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _object,
}
