"""The grammar of a whole reply: reasoning without rules, then an answer that follows a grammar.

The one idea: the mark that ends reasoning ends a lexeme, so the answer's grammar begins exactly after it,
however tokens are cut, and the engine needs to know nothing of reasoning. The mark that begins it is found as
soon as it is complete, so a reply either begins with it or follows the answer's grammar from its beginning.
"""

import json
import re
from collections.abc import Callable

from ...checkpoints.grammars.joining import within
from .formats import Place, ReasoningFormat

_MOST_SPACE = 8
"""Characters of white space between the mark and an answer; without a limit, a small model may repeat it."""

_ANY_TEXT = "start: (TEXT | <[*]>)*\nTEXT: /(.|\\n)+/"
"""Any tokens at all."""


def grammar_of_reply(
    format: ReasoningFormat,
    place: Place,
    answer: str | None,
    token_id: Callable[[str], int | None],
    most: int | None = None,
) -> str | None:
    """The grammar of a reply that begins at `place`; None if it may be anything.

    Args:
      answer: the grammar of the answer, if it has one.
      token_id: the id of the special token with this name, if there is one.
      most: the most tokens of reasoning; after them the mark that ends it is the only text allowed.
    """
    if place == "after" or (answer is None and most is None):
        return answer
    begin = token_id(format.begin)
    opening = "open" if begin is None else f"<[{begin}]>"
    rules = [
        "start: rest" if place == "inside" else f"start: @body | {opening} rest",
        "rest: thoughts gap @body",
        *_thoughts(format.end, token_id(format.end), most),
        rf"gap: /[ \t\r\n]{{0,{_MOST_SPACE}}}/",
    ]
    if place == "before" and begin is None:
        rules.append(rf"open[lazy]: /[ \t\r\n]*{re.escape(format.begin)}/")
    return within("\n".join(rules), answer or _ANY_TEXT)


def _thoughts(mark: str, token: int | None, most: int | None) -> list[str]:
    """The rules of reasoning with the mark that ends it, which may be a special token.

    `stop` would say the same as `whole` and `cut` together, but llguidance 1.9 panics at it.
    """
    limit, text = f"max_tokens={most}", r"/(.|\n)*/"
    if token is not None:
        return [f"thoughts: said <[{token}]>", f"said[{limit}]: {text}" if most else f"said: {text}"]
    mark = json.dumps(mark)
    if most is None:
        return [f"thoughts[suffix={mark}]: {text}"]
    return [
        f"thoughts: whole | cut {mark}",
        f"whole[suffix={mark}, {limit}]: {text}",
        f"cut[{limit}]: {text}",
    ]
