"""What each sequence uses of the device: seconds of steps, and pages for the time of steps. No JAX, no clock.

A step's time is divided among its rows by their tokens, so the sequences' device-seconds add up to the time
of all steps. Page-seconds are the pages that a sequence holds during a step times the step's seconds. A page
that several sequences share counts for each of them: none of them could run without it.

A row counts even if its sequence has ended meanwhile and its result is dropped. What the last event of a
sequence reports is therefore all that it has used, except a row that was in flight when it ended.
"""

from typing import Any

from .sequence import Plan, Sequence


def charge(plan: Plan, seconds: float) -> float:
    """Charges a step that took `seconds` to its sequences; returns the page-seconds of all."""
    each, held = seconds / plan.tokens, 0
    for row in plan.rows:
        row.sequence.device_seconds += each * row.count
    for sequence, pages in plan.held:
        sequence.page_seconds += pages * seconds
        held += pages
    return held * seconds


def used(sequence: Sequence) -> dict[str, Any]:
    """The fields of an event that report what its sequence has used so far."""
    return {"device_seconds": sequence.device_seconds, "page_seconds": sequence.page_seconds}
