"""Every parameter of one route: honoured, checked and without effect, or refused.

Nothing is ignored in silence. A parameter that would change the answer and is not honoured is refused with
`unsupported_parameter`, unless its value asks for what happens anyway.
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
      honoured: they do what they say. checked: their types are; they have no effect.
      refused: but for values that change nothing.
      required: of the honoured ones.
    """

    honoured: Mapping[str, Kind]
    checked: Mapping[str, Kind]
    refused: Mapping[str, Refused]
    required: tuple[str, ...] = ()

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """All of them, what each may be; those that do something first."""
        return {**self.honoured, **self.checked, **self.refused}

    def fields(self, body: dict[str, Any], limits: Limits) -> Described:
        """A body that is read by this table."""
        return Described(body, self.kinds, limits)

    def schema(self, limits: Limits) -> Schema:
        """What a body may be; a strict server takes no other keys."""
        others = {"additionalProperties": False} if limits.strict else {}
        return properties(self.kinds, limits, self.required) | others

    def unknown_keys(self, fields: Described) -> tuple[str, ...]:
        """The keys that are no parameter of this route, in the order of the body.

        Raises:
          BadRequest: there is one, and a strict server refuses it.
        """
        known = self.kinds
        found = tuple(name for name in fields.values if name not in known)
        if fields.limits.strict and found:
            raise self.unknown_parameter(found[0])
        return found

    def unknown_parameter(self, name: str) -> BadRequest:
        """The refusal of an unknown key, with the nearest known one where it is two edits away or less."""
        near = [_nearness(name, known) for known in self.kinds] if len(name) <= 64 else []
        distance, _, nearest = min(near, default=(3, True, ""))
        return BadRequest(*unknown(name, nearest if distance <= 2 else None))

    def refuse_unsupported(self, fields: Fields) -> None:
        """Raises BadRequest for the first parameter that is understood but not served."""
        for name, refused in self.refused.items():
            if not refused.passes(fields.get(name)):
                raise unsupported(name)

    def check(self, fields: Described) -> None:
        """Raises BadRequest for the first parameter without effect whose value is none."""
        for name in self.checked:
            fields.take(name)


def _nearness(name: str, known: str) -> tuple[int, bool, str]:
    """Orders candidates: few edits first, then words that were only broken off."""
    return _edits(name, known), not known.startswith(name), known


def _edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
