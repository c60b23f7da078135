"""The engine's interface to grammars: a matcher computes the allowed next ids and receives the sampled one.

The engine knows neither text nor grammars. It is constructed with a compiler of grammars, calls it once for a
new request, and calls only the request's matcher after that. No JAX.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ...model.errors import DistaffError
from ..request import InvalidRequest, Request


class Matcher(Protocol):
    """The position of one sequence in its grammar."""

    def fill(self, mask_W: np.ndarray) -> None:
        """Sets the bits of the allowed next ids: u32 `[ceil(V / 32)]`, lowest bit first.

        End ids are allowed whenever the text is complete.
        """
        ...

    def consume(self, token: int) -> None:
        """Advances by a sampled token, which was allowed."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the text matches the grammar and only the end can follow."""
        ...

    @property
    def error(self) -> str | None:
        """Why neither a token nor the end can follow in this grammar; None if one can."""
        ...


Grammars = Callable[[str], Matcher]
"""Compiles a grammar to a new matcher; raises DistaffError if it is invalid. Called from any thread."""


def no_grammars(grammar: str) -> Matcher:
    """The compiler of an engine that does not support grammars."""
    raise InvalidRequest("this engine does not support grammars; expected none", "grammar")


def create_matcher(request: Request, grammars: Grammars) -> Matcher | None:
    """A matcher at the request's position in its grammar, after `generated`; None without a grammar.

    Takes as long as compiling the grammar, and some microseconds for each generated token.

    Raises:
      InvalidRequest: the grammar is invalid, or allows nothing after the generated tokens.
    """
    if request.params.grammar is None:
        return None
    try:
        matcher = grammars(request.params.grammar)
    except DistaffError as error:
        raise InvalidRequest(str(error), "grammar") from None
    for token in request.generated:
        matcher.consume(token)
    if matcher.error:
        reason = f"the grammar cannot continue after the {len(request.generated)} generated tokens"
        raise InvalidRequest(f"{reason}: {matcher.error}", "grammar")
    if request.generated and matcher.complete:
        raise InvalidRequest(
            "the grammar ends with the generated tokens; expected it to continue", "generated"
        )
    return matcher
