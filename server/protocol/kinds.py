"""What a value may be, said once: a parser reads by it, and the OpenAPI document shows it.

Says nothing of what a parameter does. The one idea: a kind has two faces, `read`, which refuses what does not
fit, and `schema`, which states the same in JSON Schema. A value whose shape needs a parser of its own has
its schema beside that parser (`Shape`). Null is absence everywhere, so every optional value may be null.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .fields import Fields

Schema = dict[str, Any]

MOST_TOKENS = 2**31 - 1
TEXT: Schema = {"type": "string"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What differs between servers.

    Attributes:
      most_choices: the largest `n`. strict: no more is taken than OpenAI takes.
      names: the models that are served; None for any. context, vocabulary: the model's, once they are known.
      template_options: the variables that its chat template reads, likewise.
    """

    most_choices: int = 16
    strict: bool = False
    names: tuple[str, ...] | None = None
    context: int = MOST_TOKENS
    vocabulary: int = 2**31
    template_options: frozenset[str] | None = None


Bound = int | Callable[[Limits], int]


class Kind(Protocol):
    """What a value may be."""

    def read(self, fields: "Described", name: str) -> Any:
        """The value of a field, None where it is absent. Raises BadRequest for one that does not fit."""
        ...

    def schema(self, limits: Limits) -> Schema:
        """The same as JSON Schema, null aside."""
        ...


class Described(Fields):
    """An object whose fields' kinds are known."""

    def __init__(self, values: dict[str, Any], kinds: Mapping[str, Kind], limits: Limits, path: str = ""):
        super().__init__(values, path)
        self.kinds = kinds
        self.limits = limits

    def take(self, name: str) -> Any:
        """A field's value, read as its kind says. Raises BadRequest."""
        return self.kinds[name].read(self, name)

    def take_all(self) -> None:
        """Reads every field for its errors alone. Raises BadRequest."""
        for name in self.kinds:
            self.take(name)


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer within bounds; `known`: an upper bound that only the model knows, and others check."""

    low: int
    high: Bound
    known: Callable[[Limits], int] | None = None

    def read(self, fields: Described, name: str) -> int | None:
        return fields.integer(name, self.low, _bound(self.high, fields.limits))

    def schema(self, limits: Limits) -> Schema:
        high = _bound(self.high, limits)
        return {
            "type": "integer",
            "minimum": self.low,
            "maximum": min(high, self.known(limits)) if self.known else high,
        }


@dataclass(frozen=True, slots=True)
class Number:
    """A decimal within bounds."""

    low: float
    high: float

    def read(self, fields: Described, name: str) -> float | None:
        return fields.number(name, self.low, self.high)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false."""

    def read(self, fields: Described, name: str) -> bool | None:
        return fields.boolean(name)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class String:
    """A string of at most `longest` characters."""

    longest: int | None = None

    def read(self, fields: Described, name: str) -> str | None:
        return fields.string(name, self.longest)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "string"} | ({} if self.longest is None else {"maxLength": self.longest})


@dataclass(frozen=True, slots=True)
class Words:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, fields: Described, name: str) -> str | None:
        return fields.one_of(name, self.words)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Object:
    """An object of described fields; `closed`: it has no others; `said`: a schema that says more."""

    fields: Mapping[str, Kind] = field(default_factory=dict)
    closed: bool = False
    said: Callable[[Limits], Schema] | None = None

    def read(self, fields: Described, name: str) -> Described | None:
        found = fields.object(name)
        if found is None:
            return None
        if self.closed:
            found.only(self.fields)
        return Described(found.values, self.fields, fields.limits, found.path)

    def schema(self, limits: Limits) -> Schema:
        if self.said is not None:
            return self.said(limits)
        return properties(self.fields, limits) | ({"additionalProperties": False} if self.closed else {})


@dataclass(frozen=True, slots=True)
class Shape:
    """A value that a parser of its own reads, which stands beside its schema."""

    said: Schema | Callable[[Limits], Schema]

    def read(self, fields: Described, name: str) -> Any:
        return fields.get(name)

    def schema(self, limits: Limits) -> Schema:
        return self.said(limits) if callable(self.said) else self.said


@dataclass(frozen=True, slots=True)
class Refused:
    """A parameter that is refused but for values that change nothing; it reads as absent."""

    neutral: tuple[Any, ...] = ()

    def read(self, fields: Described, name: str) -> None:
        return None

    def schema(self, limits: Limits) -> Schema:
        return {"enum": list(self.neutral)}

    def passes(self, value: Any) -> bool:
        """Whether a value changes nothing. As in JSON Schema, 1.0 is 1, and true is not."""
        return value is None or any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.neutral
        )


def properties(kinds: Mapping[str, Kind], limits: Limits, required: tuple[str, ...] = ()) -> Schema:
    """The schema of an object: its required fields, and others that may be null."""
    described = {
        name: kind.schema(limits) if name in required else nullable(kind.schema(limits))
        for name, kind in kinds.items()
    }
    return {"type": "object", "properties": described} | ({"required": list(required)} if required else {})


def constant(word: str) -> Schema:
    """Of one word."""
    return {"type": "string", "enum": [word]}


def record(required: Schema, optional: Schema | None = None) -> Schema:
    """Of an object with fields that must be there and others that may be, or may be null."""
    described = {name: nullable(each) for name, each in (optional or {}).items()} | required
    return {"type": "object", "properties": described, "required": list(required)}


def array(items: Schema, most: int, least: int = 1) -> Schema:
    """Of a list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def nullable(schema: Schema) -> Schema:
    """The schema of the same, or null."""
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    changed = dict(schema)
    if "enum" in schema:
        changed["enum"] = [*schema["enum"], None]
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        changed["type"] = [*kinds, "null"]
    return changed


def _bound(bound: Bound, limits: Limits) -> int:
    return bound(limits) if callable(bound) else bound
