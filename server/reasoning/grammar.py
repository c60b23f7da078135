"""The grammar of a whole reply: reasoning without rules, then an answer that follows a grammar.

The one idea: the mark that ends reasoning ends a lexeme, so the answer's grammar begins exactly after it,
however tokens are cut, and the engine needs to know nothing of reasoning. The mark that begins it is found as
soon as it is complete, so a reply either begins with it or follows the answer's grammar from its beginning.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from ...checkpoints.grammars.joining import within
from .formats import Place, ReasoningFormat

_MOST_SPACE = 8
"""Characters of white space between the mark and an answer; without a limit, a small model may repeat it."""

_TEXT = r"/(.|\n)*/"
_ANY_TEXT = "start: (TEXT | <[*]>)*\nTEXT: /(.|\\n)+/"
"""Any tokens at all."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The most tokens of reasoning, after which the mark that ends it must follow; `token`: the mark's id."""

    most: int
    token: int


def grammar_of_reply(
    format: ReasoningFormat,
    place: Place,
    answer: str | None,
    special_id: Callable[[str], int | None],
    limit: Limit | None = None,
) -> str | None:
    """The grammar of a reply that begins at `place`; None if it may be anything.

    Args:
      answer: the grammar of the answer, if it has one.
      special_id: the id of the special token with this name, if there is one.
    """
    if place == "after" or (answer is None and limit is None):
        return answer
    begin = special_id(format.begin)
    opening = "open" if begin is None else f"<[{begin}]>"
    rules = [
        "start: rest" if place == "inside" else f"start: @body | {opening} rest",
        "rest: thoughts gap @body",
        *_thoughts(format.end, special_id(format.end), limit),
        rf"gap: /[ \t\r\n]{{0,{_MOST_SPACE}}}/",
    ]
    if place == "before" and begin is None:
        rules.append(rf"open[lazy]: /[ \t\r\n]*{re.escape(format.begin)}/")
    return within("\n".join(rules), answer or _ANY_TEXT)


def _thoughts(mark: str, special: int | None, limit: Limit | None) -> list[str]:
    """The rules of reasoning with the mark that ends it: a special token, or text.

    With a limit the mark is a token in either case, because llguidance ends a lexeme of so many tokens
    without its `suffix`. Then it cannot be written with other tokens.
    """
    if limit is not None:
        written = re.escape(mark).replace("/", r"\/")
        rules = [f"thoughts: said <[{limit.token}]>", f"said[max_tokens={limit.most}]: TEXT"]
        return [*rules, rf"TEXT: {_TEXT} & ~/(.|\n)*{written}(.|\n)*/"]
    if special is not None:
        return [f"thoughts: said <[{special}]>", f"said: {_TEXT}"]
    return [f"thoughts[suffix={json.dumps(mark)}]: {_TEXT}"]
