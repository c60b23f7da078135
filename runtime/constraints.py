"""What a grammar is to the engine: something that says which ids may come next, and hears which one came.

The engine knows neither text nor grammars. It is given a compiler of them by whoever puts it together, asks
it when a request comes in, and from then on only ever asks the matcher. No JAX.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from .request import InvalidRequest


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
