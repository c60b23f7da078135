"""Speculation by prompt lookup: what a text said after these words before, it may say again. No JAX.

A sequence's drafter finds the last place where its newest tokens stood earlier and proposes what followed
there (n-gram drafts, as in Saxena's prompt lookup decoding, 2023). The model computes the drafts in the same
step as the token before them and samples at each as if there were none (speculative decoding with exact
match: Leviathan et al. 2023, arXiv:2211.17192, for a draft that is certain), so what is said does not change.

The one idea: whether drafts pay is arithmetic. A step of more rows takes so much longer, as measured; a draft
is right with a chance that the sequence itself has shown. `allocate_drafts` maximises tokens per second.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

NGRAM = 3
"""Tokens that must have stood together before: two are too common, with four much is missed."""
MOST = 15
"""Drafts of one sequence in one step."""

_PRIOR_RIGHT, _PRIOR_TRIED = 1.2, 2.0
"""What is believed of a sequence that has not tried: three in five drafts are right."""
_MEMORY = 0.9
"""How much of its experience a sequence keeps with each step that it tries."""
_WORTHWHILE = 1.1
"""Tokens per second must grow by this factor: drafts keep the host's work from hiding behind the device's."""


class Drafter:
    """One sequence's index of what followed what, and how often its drafts were right."""

    __slots__ = ("_after", "_right", "_seen", "_tried")

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = NGRAM
        self._right, self._tried = _PRIOR_RIGHT, _PRIOR_TRIED

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """What followed the newest tokens when they last stood together; at most `most` tokens.

        `tokens` is what it was at the last call, or longer.
        """
        for end in range(self._seen, len(tokens)):
            self._after[tuple(tokens[end - NGRAM : end])] = end
        self._seen = max(self._seen, len(tokens))
        place = self._after.get(tuple(tokens[-NGRAM:])) if len(tokens) > NGRAM else None
        return () if place is None else tuple(tokens[place : place + max(0, min(most, MOST))])

    @property
    def chance(self) -> float:
        """That a draft is right if those before it were."""
        return self._right / self._tried

    def learn(self, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the first `accepted` were right, and the next one, if any, was not."""
        self._right = _MEMORY * self._right + accepted
        self._tried = _MEMORY * self._tried + accepted + (accepted < drafted)


def allocate_drafts(
    offers: Sequence[tuple[float, int]], sizes: Sequence[int], seconds: Callable[[int], float | None]
) -> list[int]:
    """How many drafts each row shall have, so that tokens come fastest; all zero where none pays.

    Args:
      offers: of each row, the chance of a draft and how many it has.
      sizes: rows of the steps there are, ascending. seconds: what a step of a size takes; None if unknown.
    """
    rows = len(offers)
    gains = sorted(
        ((chance**n, row) for row, (chance, most) in enumerate(offers) for n in range(1, most + 1)),
        key=lambda gain: -gain[0],
    )
    if not gains:
        return [0] * rows
    total = [0.0, *accumulate(gain for gain, _ in gains)]
    fitting = [(size, took) for size in sizes if size >= rows and (took := seconds(size)) is not None]
    if not fitting:
        return [0] * rows
    rate, count = max(
        ((rows + total[count]) / took, count)
        for size, took in fitting
        if (count := min(size - rows, len(gains))) or size == fitting[0][0]
    )
    if rate * fitting[0][1] <= rows * _WORTHWHILE:
        return [0] * rows
    chosen = [row for _, row in gains[:count]]
    return [chosen.count(row) for row in range(rows)]
