"""Grammars made of other grammars. Each is one string, as `grammar` describes."""

import json
from collections.abc import Mapping
from typing import Any


def either(one: str, other: str) -> str:
    """A grammar of the texts of both grammars."""
    main = {"name": "main", "lark_grammar": "start: @one | @other"}
    return json.dumps({"grammars": [main, *_named("one", one), *_named("other", other)]})


def within(rules: str, grammar: str) -> str:
    """A grammar with Lark rules, in which `@body` is another grammar."""
    return with_parts(rules, {"body": grammar})


def with_parts(rules: str, parts: Mapping[str, str]) -> str:
    """A grammar with Lark rules, in which `@name` is the grammar of that name."""
    main = {"name": "main", "lark_grammar": rules}
    return json.dumps({"grammars": [main, *(each for part in parts.items() for each in _named(*part))]})


def _named(name: str, grammar: str) -> list[dict[str, Any]]:
    """A grammar as part of another; grammars that are parts of it keep their names."""
    first, *others = _parts(grammar)
    return [first | {"name": name}, *others]


def _parts(grammar: str) -> list[dict[str, Any]]:
    """The parts of a grammar, of which the first one begins."""
    if grammar.lstrip().startswith("{"):
        return json.loads(grammar)["grammars"]
    return [{"lark_grammar": grammar}]
