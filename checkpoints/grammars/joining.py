"""Grammars made of other grammars. Each is one string, as `grammar` describes."""

import json
from typing import Any


def either(one: str, other: str) -> str:
    """A grammar of the texts of both grammars."""
    main = {"name": "main", "lark_grammar": "start: @one | @other"}
    return json.dumps({"grammars": [main, _named("one", one), _named("other", other)]})


def within(rules: str, grammar: str) -> str:
    """A grammar with Lark rules, in which `@body` is another grammar."""
    body, *others = _parts(grammar)
    main = {"name": "main", "lark_grammar": rules}
    return json.dumps({"grammars": [main, body | {"name": "body"}, *others]})


def _named(name: str, grammar: str) -> dict[str, Any]:
    """A grammar as part of another."""
    (part,) = _parts(grammar)
    return part | {"name": name}


def _parts(grammar: str) -> list[dict[str, Any]]:
    """The parts of a grammar, of which the first one begins."""
    if grammar.lstrip().startswith("{"):
        return json.loads(grammar)["grammars"]
    return [{"lark_grammar": grammar}]
