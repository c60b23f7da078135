"""What the ingress and the replicas say to each other: a request, and the pieces of its answer.

Ray serialises these values between its own processes. They are plain data, and are not read from clients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...model.errors import DistaffError

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RoutingKey:
    """What decides which replica a request should reach.

    Attributes:
      digests: one for each full step of the prompt, of everything up to its end.
      session: a digest of the conversation's name, if the client names it; empty for none.
      home: the same for all requests of a conversation: its name, or how it begins.
    """

    digests: tuple[bytes, ...] = ()
    session: str = ""
    home: bytes = b""


@dataclass(frozen=True, slots=True)
class Call:
    """A client's request on its way to a replica.

    Attributes:
      target: path and query, as the client sent them.
      headers: the client's; each letter is one byte (Latin-1).
      marks: those of the stream that this call continues, joined by newlines; empty for a new one.
      avoid: replicas that were lost with this request, by id.
    """

    method: str
    target: str
    headers: Headers
    body: bytes = b""
    key: RoutingKey = field(default_factory=RoutingKey)
    marks: bytes = b""
    avoid: tuple[str, ...] = ()

    def again(self, marks: bytes, avoid: Sequence[str]) -> "Call":
        """The same request for another replica."""
        return replace(self, marks=marks, avoid=tuple(avoid))


@dataclass(frozen=True, slots=True)
class Accepted:
    """The first piece of an answer: the id of the replica that has the request."""

    replica: str


@dataclass(frozen=True, slots=True)
class Head:
    """The second piece: the head of the server's answer. What follows is its body, as bytes."""

    status: int
    headers: Headers


Piece = Accepted | Head | bytes


class ReplicaLost(DistaffError):
    """The replica that had a request is gone, or its server is."""


class NoReplica(DistaffError):
    """No replica has taken the request in time."""
