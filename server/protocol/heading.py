"""What all chunks of an answer have in common: id, time, model, fingerprint."""

import secrets
import string
import time
from dataclasses import dataclass, field

_ALPHABET = string.ascii_letters + string.digits


def fresh_id(prefix: str, length: int = 29) -> str:
    """The prefix and this many letters or digits."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """An answer's constants.

    Attributes:
      created: Unix seconds.
    """

    id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))
