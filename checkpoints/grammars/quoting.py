r"""A Lark grammar of texts -> the grammar of the same texts inside a JSON string.

For an argument that is free text with its own grammar: a model writes it as a JSON string, where a quote,
a backslash and control characters are escaped. The one idea: each terminal becomes a rule whose lexemes are
single characters, some of them escapes of two bytes, so that none is the beginning of another. As one lexeme
a terminal could not end before an escape, because the lexer looks ahead by one byte only. `quoting_regex`
rewrites the terminals' contents.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache

from ..errors import GrammarError
from .lark import RULE_HEAD, check_ends
from .quoting_regex import character, quoted_regex

_STRING = r'"(?:\\.|[^"\\\n])*"'
_TOKEN = re.compile(
    rf"""
    (?P<space>[ \t\r]+|//[^\n]*|\#[^\n]*|->[ \t]*\w+)
    |(?P<low>{_STRING})\s*\.\.\s*(?P<high>{_STRING})
    |(?P<text>{_STRING})(?P<loose>i?)
    |/(?P<regex>(?:\\.|[^/\\\n])+)/(?P<flags>[a-z]*)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<mark>[|()\[\]*+?\n]|\{{\d*,?\d*\}})
    |(?P<foreign>[\s\S]\w*)
    """,
    re.VERBOSE,
)
_IMPORT = re.compile(r"[ \t]*%import\s+common(?:\.(\w+)(?:[ \t]*->[ \t]*(\w+))?|[ \t]*\(([\w\s,]*)\))")
_IGNORE = re.compile(r"[ \t]*%ignore\b")
_MARKS = {"[": "(", "]": ")?"}
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": r"[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_FLOAT": r"[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)",
    "NUMBER": r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "ESCAPED_STRING": r'"([^"\\\n]|\\.)*"',
    "LF": r"\n",
    "CR": r"\r",
    "NEWLINE": r"(\r?\n)+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
}
"""Lark's common terminals (lark/grammars/common.lark)."""
_KEPT = 16
"""Rewritten grammars that are kept: a request needs one twice, and agents send the same one every time."""
_OWN = "distaff_"
"""Begins the names of rules that are added, and no others."""
_SKIPPED = f"{_OWN}skipped"


@lru_cache(_KEPT)
def quoted(source: str) -> str:
    """The grammar of what stands between the quotes of a JSON string that holds a text of `source`.

    Args:
      source: a grammar in Lark: rules and terminals, `%ignore`, and `%import` of common terminals.

    Raises:
      GrammarError: no text is finite, or there is another part of llguidance's dialect, such as special
        tokens or attributes of a rule.
    """
    check_ends(source)
    return "\n".join(_Quoting(source).lines())


class _Quoting:
    """One grammar that is being rewritten line by line."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._ignored: list[str] = []
        self._skips = any(_IGNORE.match(line) for line in source.split("\n"))
        self._in_terminal = self._in_ignored = False

    def lines(self) -> Iterator[str]:
        for line in _logical_lines(self._source):
            yield from self._line(line)
        if self._skips:
            yield f"{_SKIPPED}: ({' | '.join(self._ignored)})*"

    def _line(self, line: str) -> Iterator[str]:
        if found := _IMPORT.match(line):
            yield from _imported(found)
        elif found := _IGNORE.match(line):
            self._in_terminal = self._in_ignored = True
            self._ignored.append(f"({self._body(line[found.end() :])})")
        elif head := RULE_HEAD.match(line):
            if "[" in head[0]:
                raise _unsupported(head[0].strip())
            self._in_terminal, self._in_ignored = not head[1].islower(), False
            body = self._body(line[head.end() :])
            if self._skips and head[1] == "start":
                body = f"{_SKIPPED} ({body})"  # what is ignored may also come first
            yield f"{_named(head[1])}: {body}"
        else:
            body = self._body(line)
            if body and self._in_ignored:
                raise _unsupported(line.strip())
            yield body

    def _body(self, text: str) -> str:
        return " ".join(part for part in map(self._token, _TOKEN.finditer(text)) if part)

    def _token(self, found: re.Match[str]) -> str:
        """A token of a body as it is written here; after one of a rule come texts that are ignored."""
        if found["foreign"]:
            raise _unsupported(found["foreign"])
        if found["space"]:
            return ""
        if found["mark"]:
            return _MARKS.get(found["mark"], found["mark"])
        if found["name"] and found["name"].islower():
            return _named(found["name"])
        written = _named(found["name"]) if found["name"] else _terminal(found)
        return f"({written} {_SKIPPED})" if self._skips and not self._in_terminal else written


def _logical_lines(source: str) -> Iterator[str]:
    """The lines, where an `%import` of several names is one."""
    at = 0
    while at < len(source):
        found = _IMPORT.match(source, at)
        end = source.find("\n", found.end() if found else at)
        end = len(source) if end < 0 else end
        yield source[at:end]
        at = end + 1


def _imported(found: re.Match[str]) -> Iterator[str]:
    names = [found[1]] if found[1] else re.findall(r"\w+", found[3])
    for name in names:
        if name not in _COMMON:
            raise _unsupported(f"%import common.{name}")
        yield f"{_named(found[2] or name)}: {quoted_regex(_COMMON[name], '')}"


def _named(name: str) -> str:
    """The name of a rule, or of the rule that a terminal becomes."""
    if name.startswith(_OWN):
        raise _unsupported(name)
    return name if name.islower() else f"{_OWN}terminal_{name.lower()}_{_capitals(name)}"


def _capitals(name: str) -> str:
    """Which letters of a name are capitals, so that names that differ in them alone stay apart."""
    return "".join("1" if letter.isupper() else "0" for letter in name)


def _terminal(found: re.Match[str]) -> str:
    if found["regex"]:
        return quoted_regex(found["regex"], found["flags"])
    if found["low"]:
        low, high = _text(found["low"]), _text(found["high"])
        if len(low) != 1 or len(high) != 1:
            raise _unsupported(found[0])
        return character(f"[\\x{{{ord(low):x}}}-\\x{{{ord(high):x}}}]")
    characters = [character(re.escape(each), loose=bool(found["loose"])) for each in _text(found["text"])]
    return f"({' '.join(characters)})" if characters else '""'


def _text(literal: str) -> str:
    try:
        text = json.loads(literal)
        text.encode()
    except ValueError:
        raise GrammarError(f"{literal[:64]} is not a string") from None
    return text


def _unsupported(part: str) -> GrammarError:
    return GrammarError(f"'{part[:64]}' is not supported in the grammar of a tool's input")
