"""Speculation by prompt lookup: tokens that followed the same words earlier may follow again. No JAX.

A sequence's drafter finds the last earlier occurrence of its newest tokens and proposes the tokens that
followed there (n-gram drafts, as in Saxena's prompt lookup decoding, 2023). The model computes the drafts in
the same step as the token before them, and samples at each position as if there were no drafts (speculative
decoding with exact match: Leviathan et al. 2023, arXiv:2211.17192, for a draft that is certain). So the
output does not change.

The one idea: a calculation shows whether drafts pay. The cost of a step with more rows is measured, and the
sequence's own history gives the chance that a draft is right. `allocate_drafts` maximises tokens per second.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

NGRAM = 3
"""Tokens that must match an earlier place: two match too often, four miss too much."""
MOST = 15
"""The maximum number of drafts of one sequence in one step."""

_PRIOR_RIGHT, _PRIOR_TRIED = 1.2, 2.0
"""The assumption for a sequence without history: three of five drafts are right."""
_MEMORY = 0.9
"""The weight of a sequence's history after each step with drafts."""
_WORTHWHILE = 1.1
"""Tokens per second must grow by this factor, because drafts prevent overlap of host and device work."""


class Drafter:
    """One sequence's index of n-grams and what followed them, and how often its drafts were right."""

    __slots__ = ("_after", "_right", "_seen", "_tried")

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = NGRAM
        self._right, self._tried = _PRIOR_RIGHT, _PRIOR_TRIED

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """The tokens that followed the last earlier occurrence of the newest ones; at most `most` tokens.

        `tokens` is the same list as in the last call, or a longer one.
        """
        for end in range(self._seen, len(tokens)):
            self._after[tuple(tokens[end - NGRAM : end])] = end
        self._seen = max(self._seen, len(tokens))
        place = self._after.get(tuple(tokens[-NGRAM:])) if len(tokens) > NGRAM else None
        return () if place is None else tuple(tokens[place : place + max(0, min(most, MOST))])

    @property
    def chance(self) -> float:
        """The chance that a draft is right if those before it are."""
        return self._right / self._tried

    def learn(self, drafted: int, accepted: int) -> None:
        """Records that of `drafted` tokens the first `accepted` were right and the next, if any, was not."""
        self._right = _MEMORY * self._right + accepted
        self._tried = _MEMORY * self._tried + accepted + (accepted < drafted)


def allocate_drafts(
    offers: Sequence[tuple[float, int]], sizes: Sequence[int], seconds: Callable[[int], float | None]
) -> list[int]:
    """The number of drafts for each row that gives the most tokens per second; all zero if none pays.

    Args:
      offers: for each row, the chance that a draft is right and the number of drafts.
      sizes: rows of the compiled steps, ascending. seconds: the time of a step of a size; None if unknown.
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
