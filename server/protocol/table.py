"""Every parameter of one route: honoured, checked and without effect, or refused.

Nothing is ignored silently. A parameter that would change the answer and is not honoured is refused with
`unsupported_parameter`, unless its value changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest
from .fields import Fields, unknown, unsupported
from .kinds import Described, Kind, Limits, Refused, Schema, properties


@dataclass(frozen=True, slots=True)
class Parameters:
    """Every parameter of one route.

    Attributes:
      honoured: they have their effect. checked: only their types are checked; they have no effect.
      refused: except for values that change nothing.
      required: the honoured ones that a body must have.
    """

    honoured: Mapping[str, Kind]
    checked: Mapping[str, Kind]
    refused: Mapping[str, Refused]
    required: tuple[str, ...] = ()

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of all of them; those with an effect first."""
        return {**self.honoured, **self.checked, **self.refused}

    def fields(self, body: dict[str, Any], limits: Limits) -> Described:
        """A body, to be read with this table."""
        return Described(body, self.kinds, limits)

    def schema(self, limits: Limits) -> Schema:
        """The schema of a body; a strict server accepts no other keys."""
        others = {"additionalProperties": False} if limits.strict else {}
        return properties(self.kinds, limits, self.required) | others

    def unknown_keys(self, fields: Described) -> tuple[str, ...]:
        """The keys that are not parameters of this route, in the order of the body.

        Raises:
          BadRequest: there is such a key and the server is strict.
        """
        known = self.kinds
        found = tuple(name for name in fields.values if name not in known)
        if fields.limits.strict and found:
            raise self.unknown_parameter(found[0])
        return found

    def unknown_parameter(self, name: str) -> BadRequest:
        """The error for an unknown key, with the nearest known one if it is at most two edits away."""
        near = [_nearness(name, known) for known in self.kinds] if len(name) <= 64 else []
        distance, _, nearest = min(near, default=(3, True, ""))
        return BadRequest(*unknown(name, nearest if distance <= 2 else None))

    def refuse_unsupported(self, fields: Fields) -> None:
        """Raises BadRequest for the first parameter that is known but not supported."""
        for name, refused in self.refused.items():
            if not refused.passes(fields.get(name)):
                raise unsupported(name)

    def check(self, fields: Described) -> None:
        """Raises BadRequest for the first parameter without effect that has an invalid value."""
        for name in self.checked:
            fields.take(name)


def _nearness(name: str, known: str) -> tuple[int, bool, str]:
    """Orders candidates: few edits first, then words that are only cut short."""
    return _edits(name, known), not known.startswith(name), known


def _edits(a: str, b: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
