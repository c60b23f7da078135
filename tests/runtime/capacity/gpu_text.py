"""Reads a compiled GPU program's text: what it launches, where the host waits for it, what it moves."""

import re
from collections import Counter
from collections.abc import Iterator

from distaff.runtime.capacity.hlo import IDLE, Instruction, bytes_of, computations_of

_WAITS = ("conditional", "while")
_MOVES = re.compile(r"concatenate|copy|transpose")


def launches_of(text: str) -> Counter[str]:
    """How many kernels or copies the program launches outside branches and loops, by operation."""
    return Counter(each.operation for each in computations_of(text)["ENTRY"] if each.operation not in IDLE)


def waits_of(text: str) -> list[str]:
    """The branches and loops at the top: XLA reads a value back for them, so the host waits."""
    return [each.scope for each in computations_of(text)["ENTRY"] if each.operation in _WAITS]


def moves_of(text: str, least: int) -> list[tuple[tuple[int, ...], int, str]]:
    """Copies, transposes and concatenations that write `least` bytes or more, anywhere in the program.

    Returns: the sizes of the array's axes in ascending order, its bytes, and what it is for.
    """
    return [
        (axes_of(each.type), bytes_of(each.type), f"{each.name} {each.scope}")
        for each in _launched(text)
        if (each.operation in ("copy", "transpose", "concatenate", "copy-start") or _moves_alone(each))
        and bytes_of(each.type) >= least
    ]


def axes_of(kind: str) -> tuple[int, ...]:
    """The sizes of the axes of a type's first array, in ascending order, without those of 1."""
    found = re.search(r"\[([\d,]*)\]", kind)
    sizes = map(int, filter(None, found[1].split(","))) if found else ()
    return tuple(sorted(size for size in sizes if size > 1))


def _launched(text: str) -> Iterator[Instruction]:
    """The instructions of the program, of its branches and of its loops, but not those inside kernels."""
    computations = computations_of(text)
    inner = {
        called
        for body in computations.values()
        for each in body
        if each.operation not in (*_WAITS, "call", "async-start")
        for called in each.calls
    }
    for name, body in computations.items():
        if name not in inner:
            yield from body


def _moves_alone(each: Instruction) -> bool:
    """Whether XLA has named a fusion after a move."""
    return each.operation == "fusion" and bool(_MOVES.search(each.name)) and "update" not in each.name
