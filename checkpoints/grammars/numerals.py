"""Limits the numbers of constrained JSON to 16 digits in a row, unless the schema has longer ones.

JSON's numbers may have any length, and a small model that repeats a digit does not stop. The one idea: when a
number is long enough, tokens that continue it with digits are forbidden, unless there are no others; so a
schema that requires more digits gets them. The bound is llama.cpp's, for integers, decimals and exponents.
"""

import re
from collections.abc import Sequence

import numpy as np

MOST_DIGITS = 16
"""Before the decimal point, after it, and in the exponent."""

_JSON = ('"json_schema"', "%json")
_LONG = re.compile(rf"\d{{{MOST_DIGITS + 1},}}")


def most_digits(grammar: str) -> int | None:
    """The maximum number of digits in a row; None for a grammar without JSON."""
    if not any(mark in grammar for mark in _JSON):
        return None
    return max(map(len, _LONG.findall(grammar)), default=MOST_DIGITS)


class DigitMasks:
    """The number of digits that each id of a vocabulary begins with."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """`tokens`: the bytes of each id."""
        self.tokens = tokens
        leading = np.array([len(token) - len(token.lstrip(b"0123456789")) for token in tokens], np.int32)
        self._longest = int(leading.max(initial=0))
        self._more_than = [_packed(leading > room) for room in range(self._longest)]
        self._letter = next((i for i, token in enumerate(tokens) if token == b"z"), None)

    def forbid(self, mask_W: np.ndarray, room: int) -> None:
        """Clears the bits of ids that begin with more than `room` digits, unless no other bit is set.

        If any text may follow, there is no number to limit, and nothing is cleared.
        """
        if room >= self._longest or self._any_text(mask_W):
            return
        kept_W = mask_W & ~self._more_than[max(0, room)]
        if kept_W.any():
            mask_W[:] = kept_W

    def _any_text(self, mask_W: np.ndarray) -> bool:
        letter = self._letter
        return letter is not None and bool(mask_W[letter // 32] >> np.uint32(letter % 32) & 1)


class Numeral:
    """Counts the digits of the number that a reply is in, if it is in one."""

    def __init__(self, masks: DigitMasks, most: int) -> None:
        """Begins outside of a number; `most`: maximum digits in a row."""
        self._masks, self._most = masks, most
        self._digits = 0
        self._in_string = self._escaped = False

    def fill(self, mask_W: np.ndarray) -> None:
        """Clears the ids that would make the number too long: u32 `[W]`, lowest bit first."""
        if self._digits and not self._in_string:
            self._masks.forbid(mask_W, self._most - self._digits)

    def consume(self, token: int) -> None:
        """Advances by `token`."""
        for byte in self._masks.tokens[token]:
            self._digits = self._digits + 1 if 48 <= byte <= 57 else 0
            if byte == 0x0A:  # not allowed in a string: the text before was not JSON
                self._in_string = self._escaped = False
            elif self._escaped:
                self._escaped = False
            elif self._in_string and byte == 0x5C:
                self._escaped = True
            elif byte == 0x22:
                self._in_string = not self._in_string


def _packed(flags: np.ndarray) -> np.ndarray:
    """Flags as bits, u32 `[ceil(V / 32)]`, lowest first."""
    padded = np.zeros(-(-flags.size // 32) * 32, bool)
    padded[: flags.size] = flags
    return np.packbits(padded, bitorder="little").view(np.uint32)
