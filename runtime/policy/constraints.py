"""What a grammar is to the engine: something that says which ids may come next, and hears which one came.

The engine knows neither text nor grammars. It is given a compiler of them by whoever puts it together, asks
it when a request comes in, and from then on only ever asks the matcher. No JAX.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ...model.errors import DistaffError
from ..request import InvalidRequest, Request


class Matcher(Protocol):
    """Where one sequence stands in its grammar."""

    def fill(self, mask_W: np.ndarray) -> None:
        """Sets the bits of the ids that may come next: u32 `[ceil(V / 32)]`, lowest bit first.

        End ids are among them wherever the text is complete.
        """
        ...

    def consume(self, token: int) -> None:
        """`token` came; it was allowed."""
        ...

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end, and the text so far is one of the grammar's."""
        ...

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed any further, neither to a token nor to the end; else None."""
        ...


Grammars = Callable[[str], Matcher]
"""A fresh matcher for a grammar; raises DistaffError for one that is none. Called from any thread."""


def no_grammars(grammar: str) -> Matcher:
    """The compiler of an engine without one."""
    raise InvalidRequest("this engine follows no grammars; expected none", "grammar")


def create_matcher(request: Request, grammars: Grammars) -> Matcher | None:
    """Where a sequence stands in its grammar: behind what was generated before. None without a grammar.

    Takes as long as compiling the grammar does, and some microseconds for each generated token.

    Raises:
      InvalidRequest: the grammar is none, or allows nothing behind the generated tokens.
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
        reason = f"the grammar cannot be followed behind the {len(request.generated)} generated tokens"
        raise InvalidRequest(f"{reason}: {matcher.error}", "grammar")
    if request.generated and matcher.complete:
        raise InvalidRequest("the grammar ends with the generated tokens; expected it to go on", "generated")
    return matcher
