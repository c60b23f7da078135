r"""A regular expression -> Lark for the texts that it matches, as they stand inside a JSON string.

The parts of the expression become Lark's own: groups, alternatives and repetitions have the same signs. Only
atoms, which match one character, are rewritten. Which of the characters that JSON escapes an atom matches is
asked of llguidance, so its syntax is not read twice. Control characters without a short escape are left out.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache

from ..errors import GrammarError
from .grammar import first_bytes, regex_grammar

_ESCAPES = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\b": r"\b", "\f": r"\f"}
_PLAIN = r'[^"\\\x00-\x1f]'
_CLASS = r"\[\^?\]?(?>\\.|\[(?>\\.|[^\[\]\\])*\]|[^\[\]\\])*\]"
"""A class with classes in it at most; atomic groups, so that no text takes long to be refused."""
_PART = re.compile(
    rf"(?P<wrong>\(\?(?!P?<\w+>|:)|[\^$]|\\[AzZbBG<>])"
    rf"|(?P<open>\((?:\?(?:P?<\w+>|:))?)|(?P<close>\))|(?P<bar>\|)"
    rf"|(?P<repeated>(?:[*+?]|\{{\d*,?\d*\}})\??)"
    rf"|(?P<atom>{_CLASS}|\\[xu]\{{\w+\}}|\\x\w\w|\\u\w{{4}}|\\[pP](?:\{{[^}}]*\}}|\w)|\\.|.)"
)


def quoted_regex(source: str, flags: str) -> str:
    """The Lark of what a regular expression matches completely.

    Args:
      source: in Rust's syntax. flags: of `i`, `s`, `m`, `u`.

    Raises:
      GrammarError: it is not valid, or has look-around, a flag inside, the flag `x`, or an anchor that is not
        at an end.
    """
    if "x" in flags:
        raise GrammarError(
            f"the flag 'x' of /{source[:64]}/ is not supported in the grammar of a tool's input"
        )
    source = re.sub(r"^\^|(?<!\\)\$$", "", source)
    return f"({' '.join(_parts(source, flags))})"


def _parts(source: str, flags: str) -> Iterator[str]:
    empty = True
    for found in _PART.finditer(source):
        if found["wrong"]:
            raise GrammarError(
                f"'{found[0]}' in /{source[:64]}/ is not supported in the grammar of a tool's input"
            )
        if empty and (found["bar"] or found["close"]):
            yield '""'
        empty = bool(found["open"] or found["bar"])
        if found["atom"]:
            yield character(found[0], loose="i" in flags, lines="s" in flags)
        else:
            yield "(" if found["open"] else found[0].removesuffix("?") or "?"
    if empty:
        yield '""'


@lru_cache(4096)
def character(atom: str, *, loose: bool = False, lines: bool = False) -> str:
    """The Lark of one character of a JSON string.

    Args:
      atom: a regular expression that matches one character. loose: case is ignored.
      lines: `.` also matches the end of a line.

    Raises:
      GrammarError: it is not valid.
    """
    if atom == "/":
        atom = r"\/"
    elif atom == ".":
        atom = r"[\s\S]" if lines else r"[^\n]"
    written = f"(?i:{atom})" if loose else atom
    matched = first_bytes(regex_grammar(written))
    if not any(byte < 32 or chr(byte) in _ESCAPES for byte in matched):
        return f"/{written}/"
    others = [byte for byte in matched if byte >= 32 and chr(byte) not in _ESCAPES]
    plain = f"[{atom}&&{_PLAIN}]"
    found = [f"/(?i:{plain})/" if loose else f"/{plain}/"] if others else []
    found += [json.dumps(escape) for each, escape in _ESCAPES.items() if ord(each) in matched]
    if not found:
        raise GrammarError(f"{atom[:64]!r} matches no character that can be written in a JSON string")
    return f"({' | '.join(found)})"
