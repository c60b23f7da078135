"""Which decoding sequences pause for a step, so that another client's prompt is computed in it. No JAX.

One client's sequences can fill the engine. A request of another client then has a small step for a part of
its prompt, then the next one, and steps have few sizes. Its first token comes sooner if one step holds all of
the prompt, and costs the many streams one pause. So for a prompt of a client that has no decoding sequence,
the client with most of them makes room: its youngest sequences have no row in that step, as few as possible.
A better rank does not wait for the prompt. The scheduler checks that there are pages for it.
"""

from collections import Counter
from collections.abc import Sequence as List

from .sequence import Sequence
from .step_times import PATIENCE, StepTimes

LONGEST_PAUSE = 2 * PATIENCE
"""The most times longer than a decode step that such a step can take."""


def can_pause(prompt: Sequence, decoding: List[Sequence]) -> list[Sequence]:
    """The sequences that can pause for a prompt, in the order in which they do: those of the client that has
    more than half of the decoding ones. Empty if its client has some, or if any has a better rank."""
    owners = Counter(sequence.request.client for sequence in decoding)
    if not owners or prompt.request.client in owners:
        return []
    (client, most), *_ = owners.most_common(1)
    if 2 * most <= len(decoding) or prompt.request.rank > min(each.request.rank for each in decoding):
        return []
    theirs = [sequence for sequence in decoding if sequence.request.client == client]
    return sorted(theirs, key=lambda each: (each.request.rank, each.arrival), reverse=True)


def make_room(
    missing: int, decoding: int, theirs: List[Sequence], step_times: StepTimes
) -> tuple[int, list[Sequence]]:
    """The size of a step for the whole of a prompt, and the sequences that pause for it; 0 and none if there
    is no such step, if it would be too long, or if the prompt is computed in one step anyway.

    Args:
      missing: the number of the prompt's tokens that are not computed. decoding: the number of decode rows.
      theirs: the sequences that can pause, in the order in which they do.
    """
    size = next((size for size in step_times.sizes("mixed") if size >= missing), None)
    alone = step_times.seconds("decode", decoding)
    if size is None or alone is None or missing + decoding <= (step_times.most_tokens(decoding, 1) or 0):
        return 0, []
    excess = max(0, missing + decoding - size)
    if excess > len(theirs) or (step_times.seconds("mixed", size) or 0.0) > LONGEST_PAUSE * alone:
        return 0, []
    return size, list(theirs[:excess])
