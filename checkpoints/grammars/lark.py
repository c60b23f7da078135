"""Whether a Lark grammar has any finite text: a rule that requires itself never ends.

Reads the necessary part of llguidance's dialect: rules, alternatives, optional items. The one idea is that of
`finite.py`; as there, whatever is not understood counts as finite, so that no grammar is refused because of
its syntax. The compiler checks terminals, schemas and special tokens.
"""

import json
import re
from collections.abc import Iterator

from ..errors import GrammarError

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r]+|//[^\n]*|\#[^\n]*)
    |(?P<line>\n)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[imslux]*|<[^>\n]*>|@\w+)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<directive>%\w+)
    |(?P<least>\{\s*\d*)(?:\s*,)?\s*\d*\s*\}
    |(?P<mark>->|\.\.|[\s\S])
    """,
    re.VERBOSE,
)
RULE_HEAD = re.compile(r"[ \t]*[?!]?([A-Za-z_]\w*)(?:\.-?\d+)?[ \t]*(?:\[[^\]\n]*\])?[ \t]*:(?!:)")
_DIRECTIVE = re.compile(r"[ \t]*%")
_TEXT = '"'
"""Represents every token that is finite by itself."""

Item = str | tuple["Choice", bool]
"""A rule's name, or a group and whether it may be left out."""
Choice = list[list[Item]]


class _NotRead(Exception):
    """A part of a grammar that is not understood here."""


def check_ends(source: str) -> None:
    """Raises GrammarError if the grammar has no finite text."""
    if is_endless(source):
        raise GrammarError("no finite text satisfies it: its start rule requires itself")


def is_endless(source: str) -> bool:
    """Whether the grammar has no finite text; False if that is unknown."""
    try:
        rules = {name: _Body(tokens).read() for name, tokens in _bodies(source)}
    except (_NotRead, RecursionError):
        return False
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, choice in rules.items():
        for used in set(_names(choice)) & rules.keys():
            users[used].append(name)
    endless, waiting = set(rules), list(rules)
    while waiting:
        name = waiting.pop()
        if name in endless and _ends(rules[name], endless):
            endless.remove(name)
            waiting += users[name]
    return "start" in endless


def _ends(choice: Choice, endless: set[str]) -> bool:
    return any(all(_item_ends(item, endless) for item in sequence) for sequence in choice)


def _item_ends(item: Item, endless: set[str]) -> bool:
    return item not in endless if isinstance(item, str) else item[1] or _ends(item[0], endless)


def _names(choice: Choice) -> Iterator[str]:
    for item in (item for sequence in choice for item in sequence):
        if isinstance(item, str):
            yield item
        else:
            yield from _names(item[0])


def _bodies(source: str) -> Iterator[tuple[str, list[str]]]:
    """Each rule's name and the tokens after its colon."""
    name, body, at, line_begins = "", list[str](), 0, True
    while at < len(source):
        head = RULE_HEAD.match(source, at) if line_begins else None
        if head or (line_begins and _DIRECTIVE.match(source, at)):
            if name.islower():
                yield name, body
            name, body = head[1] if head else "", []
            at = head.end() if head else at
        found = _TOKEN.match(source, at)
        if found is None:
            break
        at = _after_json(source, found.end()) if found["directive"] else found.end()
        line_begins = found["line"] is not None
        if not found["space"] and not line_begins:
            body.append(_TEXT if found["text"] or found["directive"] else found["least"] or found[0])
    if name.islower():
        yield name, body


def _after_json(source: str, at: int) -> int:
    """The end of the JSON object after a directive, if there is one."""
    begin = len(source) - len(source[at:].lstrip())
    if not source.startswith("{", begin):
        return at
    try:
        return json.JSONDecoder().raw_decode(source, begin)[1]
    except ValueError:
        raise _NotRead from None


class _Body:
    """Parses the text after a rule's colon."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._at = tokens, 0

    def read(self) -> Choice:
        choice = self._choice()
        if self._at < len(self._tokens):
            raise _NotRead
        return choice

    def _choice(self) -> Choice:
        choice: Choice = [[]]
        while self._next not in ("", ")", "]"):
            if self._next == "|":
                self._at += 1
                choice.append([])
            else:
                choice[-1] += self._item()
        return choice

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _item(self) -> list[Item]:
        token, optional = self._take(), False
        if token in ("(", "["):
            inner: Choice = self._choice()
            if self._next != (")" if token == "(" else "]"):
                raise _NotRead
            self._at += 1
            optional = token == "["
        elif token in ("->", ".."):
            self._at += 1
            return []
        elif token == _TEXT or token.isidentifier():
            inner = [[token]]
        else:
            raise _NotRead
        while self._next in ("?", "*", "+") or self._next.startswith("{"):
            suffix = self._take()
            optional |= suffix in "?*" or (suffix.startswith("{") and not int(suffix[1:] or 0))
        return [(inner, optional)]
