"""Reads a compiled program's text: its collectives, and its real traffic to main memory.

XLA's "bytes accessed" counts every operand of every instruction, in any memory: weights that are fetched into
the chip's own memory count three times, a table counts completely when a few rows are gathered from it, and
so does a pool when rows are scattered into it. Here only main memory counts, and only the bytes accessed.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_ARRAY = re.compile(r"\b(pred|[sufb]+\d+)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line: name, result type, operation, operands, called computations, scope in the model."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    scope: str


def computations_of(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation, by name; the program itself is `ENTRY`."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            current = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif parts := _LINE.match(line):
            current.append(_read(*parts.groups()))
    return found


def _read(name: str, kind: str, operation: str, rest: str) -> Instruction:
    arguments = rest.split(")", 1)[0]
    called = re.findall(r"(?:calls|to_apply|body)=(%[\w.\-]+)", rest)
    if branches := re.search(r"branch_computations=\{([^}]*)\}", rest):
        called += re.findall(r"%[\w.\-]+", branches[1])
    called += re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", rest)
    scope = re.search(r'op_name="([^"]*)"', rest)
    operands = tuple(re.findall(r"%[\w.\-]+", arguments))
    return Instruction(name, kind, operation, operands, tuple(called), scope[1] if scope else "")


def bytes_of(kind: str, *, main_memory: bool = False) -> int:
    """Bytes of all arrays in a type, or only of those in main memory (others have the mark `S(n)`)."""
    total = 0
    for dtype, axes, layout in _ARRAY.findall(kind):
        if not (main_memory and "S(" in layout):
            total += _SIZES.get(dtype, 4) * math.prod(map(int, filter(None, axes.split(","))))
    return total


def collectives_of(text: str) -> tuple[tuple[str, int, int], ...]:
    """`(kind, count, bytes of one result)` of the collectives in one run of a compiled program.

    Of several branches, the one that sends least counts: no prompt is scored.
    """
    found = Counter(_sent(computations_of(text), "ENTRY"))
    return tuple((kind, count, size) for (kind, size), count in found.items())


def _sent(computations: Mapping[str, list[Instruction]], name: str) -> Iterator[tuple[str, int]]:
    """The kind and the bytes of each collective of a computation and of those that it calls."""
    for each in computations.get(name, ()):
        if kind := _COLLECTIVE.fullmatch(each.operation):
            arrays = [match[0] for match in _ARRAY.finditer(each.type)]
            yield kind[1], bytes_of(arrays[-1] if kind[2] else each.type)
        called = [list(_sent(computations, other)) for other in each.calls]
        if each.operation == "conditional":
            called = [min(called, key=len, default=[])]
        for sent in called:
            yield from sent


def kernels_of(text: str) -> dict[str, int]:
    """The custom kernels in a compiled program, by name."""
    calls = re.findall(r"%([\w\-]+?)(?:\.\d+)* = [^\n]*custom_call_target=\"tpu_custom_call\"", text)
    return dict(Counter(calls))


def traffic_of(text: str) -> dict[str, float]:
    """Bytes to and from main memory in one run, by purpose.

    Of several branches, the one with the least work counts (plain greedy sampling). Custom kernels are left
    out: `kernel_bytes` counts them.
    """
    computations = computations_of(text)
    found: defaultdict[str, float] = defaultdict(float)
    for purpose, size in _touched(computations, "ENTRY"):
        found[purpose] += size
    return {purpose: size for purpose, size in sorted(found.items(), key=lambda each: -each[1]) if size}


IDLE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id"),
    *("slice-done", "copy-done", "all-gather-done", "all-reduce-done", "opt-barrier"),
}
"""Instructions that launch nothing and move nothing."""


def _touched(computations: Mapping[str, list[Instruction]], name: str) -> Iterator[tuple[str, float]]:
    types = {each.name: each.type for each in computations[name]}
    known = {each.name: each for each in computations[name]}
    for each in computations[name]:
        if each.operation in IDLE or "pallas_call" in each.scope:
            continue
        if each.operation == "conditional":
            branches = [list(_touched(computations, branch)) for branch in each.calls]
            yield from min(branches, key=lambda branch: sum(size for _, size in branch), default=[])
        else:
            yield _purpose(_origin(each, known)), _moved(each, types, computations)


def _moved(
    each: Instruction, types: Mapping[str, str], computations: Mapping[str, list[Instruction]]
) -> float:
    """Bytes that one instruction reads from and writes to main memory."""
    arrays = [match[0] for match in _ARRAY.finditer(each.type)]
    if each.operation in ("slice-start", "copy-start"):  # source and destination, in either order
        moved = min(bytes_of(array) for array in arrays[:2])
        return moved * sum("S(" not in array for array in arrays[:2])
    operands = [types.get(operand, "") for operand in each.operands]
    kinds = {each.operation} | {i.operation for called in each.calls for i in computations.get(called, [])}
    largest = max(map(bytes_of, operands), default=0)
    if kinds & {"scatter", "dynamic-update-slice"} and largest == bytes_of(each.type):
        return sum(map(bytes_of, operands)) - largest
    read = [bytes_of(operand, main_memory=True) for operand in operands]
    written = bytes_of(each.type, main_memory=True)
    if kinds & {"gather", "dynamic-slice"} and read and max(read) > bytes_of(each.type):
        return sum(read) - max(read) + bytes_of(each.type) + written
    return sum(read) + written


def _origin(each: Instruction, known: Mapping[str, Instruction]) -> Instruction:
    """The instruction that gives this one its purpose: a copy has the purpose of its source."""
    while not each.scope and each.operands and each.operands[0] in known:
        each = known[each.operands[0]]
    return each


def _purpose(each: Instruction) -> str:
    """The purpose of an instruction, from the model's named scopes."""
    return next((purpose for mark, purpose in _PURPOSES if mark in each.scope), "other")


_PURPOSES = (
    ("leaves[", "weights"),
    ("scatter", "cache written"),
    ("head/", "head"),
    ("sample", "sampling"),
    ("dot_general", "weights"),
    ("attention/", "attention's own"),
    ("feed_forward/", "feed-forward's own"),
)
