"""What all chunks of an answer have in common: id, time, model, fingerprint.

Everything random in an answer follows from its `Identity`, so that another server can continue it.
"""

import hashlib
import secrets
import string
import time
from dataclasses import dataclass, field

from ...runtime.request import draw_seed

_ALPHABET = string.ascii_letters + string.digits


def fresh_id(prefix: str, length: int = 29) -> str:
    """The prefix and this many random letters or digits."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def derived_id(prefix: str, length: int, *origin: str | int) -> str:
    """The prefix and this many letters or digits, always the same ones for the same origin; at most 32."""
    digest = hashlib.sha256("\0".join(map(str, origin)).encode()).digest()
    return prefix + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:length])


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What is drawn once for an answer.

    Attributes:
      name: 29 letters or digits, for its id. created: Unix seconds. seed: for a request without one.
    """

    name: str = field(default_factory=lambda: fresh_id(""))
    created: int = field(default_factory=lambda: int(time.time()))
    seed: int = field(default_factory=draw_seed)


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
