"""Which decoding sequences pause for a step, so that another client's prompt is computed in it. No JAX.

One client's sequences can fill the engine. A request of another client then has a small step for a part of
its prompt, then the next one, and steps have few sizes. Its first token comes sooner if one step holds all of
the prompt, and costs the many streams one pause. So for a prompt of a client that has no decoding sequence,
the client with most of them makes room: its youngest sequences have no row in that step, as few as possible.
"""

from collections import Counter
from collections.abc import Sequence as List

from .sequence import Sequence
from .step_times import PATIENCE, StepTimes

LONGEST_PAUSE = 2 * PATIENCE
"""The most times longer than a decode step that such a step can take."""


def make_room(
    prefilling: List[Sequence], decoding: List[Sequence], step_times: StepTimes
) -> tuple[int, list[Sequence]]:
    """The size of a step for the whole of the next prompt, and the sequences that pause for it; 0 and none if
    the prompt is not to be preferred.

    Args:
      prefilling: the sequences that lack more than one token, in order. decoding: those that lack one.
    """
    owners = Counter(sequence.request.client for sequence in decoding)
    if not prefilling or not owners or prefilling[0].request.client in owners:
        return 0, []
    missing, (client, most) = prefilling[0].missing, owners.most_common(1)[0]
    size = next((size for size in step_times.sizes("mixed") if size >= missing), None)
    alone = step_times.seconds("decode", len(decoding))
    if size is None or alone is None or 2 * most <= len(decoding):
        return 0, []
    excess = max(0, missing + len(decoding) - size)
    if excess > most or (step_times.seconds("mixed", size) or 0.0) > LONGEST_PAUSE * alone:
        return 0, []
    theirs = [sequence for sequence in decoding if sequence.request.client == client]
    return size, sorted(theirs, key=lambda sequence: sequence.arrival)[most - excess :]
