"""Token events of one call -> deltas of its choices, in the order in which clients receive them.

`deltas` is the only path: a stream sends each delta as it arrives, and a whole reply folds the same deltas.
Choices start in the order 0, 1, 2 …, as clients require, in whatever order the engine answers.
"""

import time
from collections.abc import AsyncIterator, Sequence

from ...runtime.request import TokenEvent
from .choice import ChoiceText
from .deltas import Delta, End, Start
from .generation import Generation


async def deltas(
    generation: Generation, choices: Sequence[ChoiceText], silence: float
) -> AsyncIterator[list[Delta] | None]:
    """The deltas of all choices until the last one ends, those of one event together; None after each
    `silence` seconds without a delta.

    There may be none while tokens arrive: a call of a tool is certain when it is complete.

    Raises:
      EngineFailed: the engine was lost. RequestFailed: it failed one of the sequences.
      BadRequest, InvalidRequest: it failed one because the request is invalid.
    """
    waiting: list[list[TokenEvent]] = [[] for _ in choices]
    started = ended = 0
    last = time.monotonic()
    while ended < len(choices):
        received = await generation.next(silence)
        if received is None:
            yield None
            last = time.monotonic()
            continue
        index, event = received
        if event.finish == "error":
            raise choices[index].failure(event)
        waiting[index].append(event)
        if index > started:
            continue
        found: list[Delta] = []
        for choice in range(index, len(choices) if index == started else index + 1):
            if not waiting[choice]:
                break
            for delta in _deltas_of(choice, choices[choice], waiting[choice], generation):
                started += isinstance(delta, Start)
                ended += isinstance(delta, End)
                found.append(delta)
            if choice >= started:
                break
        if found or time.monotonic() - last >= silence:
            yield found or None
            last = time.monotonic()


def _deltas_of(
    choice: int, text: ChoiceText, events: list[TokenEvent], generation: Generation
) -> list[Delta]:
    """The deltas of one choice for its buffered events."""
    found: list[Delta] = []
    for event in events:
        if text.finish is not None:
            break
        found += text.push(choice, event)
        if text.finish is not None:
            generation.end(choice)
    events.clear()
    return found
