"""The seam between the web process and whatever runs the model.

`EngineClient` is what routes know: submit a request, iterate its events, abort it, ask how things stand.
Behind it stands `EngineGroup` (supervised child processes) in production, or `FakeEngine` in protocol tests.
Every call is made from the event loop's thread, and none of them blocks.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from ..runtime.request import EngineFailed, EngineStats, Request, TokenEvent

EngineState = Literal["starting", "loading", "ready", "restarting", "draining", "stopped"]
"""`starting`: no process yet. `loading`: it reads weights or compiles. `restarting`: it was lost and a
successor is being brought up. `draining`: takes nothing new. `stopped`: gone for good."""

TAKING: frozenset[EngineState] = frozenset({"ready", "restarting"})
"""The states in which sequences are taken: those that come while an engine restarts wait for it."""

MoveCause = Literal["engine_lost", "preempted", "draining"]
"""Why a sequence left an engine before its end. `engine_lost`: the engine was lost. `preempted`: another
client is due its place. `draining`: the engine takes nothing new."""

MOVE_CAUSES: tuple[MoveCause, ...] = get_args(MoveCause)


class ShutDown(EngineFailed):
    """The server shuts down, and the time for what still ran is up."""


class RequestFailed(EngineFailed):
    """The engine failed this one request, and serves on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What the engine says of itself when it is ready.

    Attributes:
      context: the longest sequence it serves, prompt and completion together.
      vocabulary: V; ids beyond it are refused.
      slots: sequences that decode at the same time.
      fingerprint: ten hex digits over weights, dtype, versions and mesh: changes when outputs may.
      scores: prompts can be scored. platform: `cpu`, `gpu` or `tpu`.
      max_input: the operator's bound on a prompt's tokens; None leaves it to the context.
      page_size: tokens to a page of the KV cache. pages: how many there are; 0 where that is unknown.
    """

    context: int
    vocabulary: int
    slots: int
    fingerprint: str
    scores: bool = True
    max_input: int | None = None
    platform: str = "cpu"
    page_size: int = 16
    pages: int = 0

    @property
    def longest_prompt(self) -> int:
        """The most tokens that a prompt may have: at least one more must fit."""
        return min(self.max_input or self.context, self.context - 1)


class EventStream(Protocol):
    """The events of one accepted request, in order."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yields events up to and including the one with `finish`.

        Raises:
          EngineFailed: the engine was lost before the request had finished.
          ShutDown: the server shut down before that.
        """
        ...

    def abort(self) -> None:
        """Ends the request wherever it is. Idempotent, immediate, never raises; a no-op once finished."""
        ...


class Replica(Protocol):
    """A running, starting or failed engine, as far as it can be looked at."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo | None:
        """What it serves; None until it has been ready once."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot of its load."""
        ...

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine was last heard of; 0.0 while there is nothing to hear yet."""
        ...

    @property
    def ready_in(self) -> float:
        """Seconds until it is probably ready, where it is not."""
        ...


class EngineClient(Replica, Protocol):
    """One engine or several, and what can be asked of them."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """The engines that it consists of, by number; itself where it is one."""
        ...

    @property
    def queued(self) -> tuple[int, int]:
        """What waits for room in any engine, and is in none: sequences, and their tokens."""
        ...

    @property
    def moved(self) -> Mapping[MoveCause, int]:
        """How often since the start a sequence left an engine and went on in another one, or in the same one
        later, by cause."""
        ...

    def submit(self, requests: Sequence[Request]) -> Sequence[EventStream]:
        """Hands the sequences of a call over, all or none.

        Raises:
          NotReady: not in one of the states `TAKING`.
          Overloaded: they would wait too long, or there are too many.
        """
        ...

    def profile(self, on: bool) -> None:
        """Begins or ends a profile of the device's and the engine's work."""
        ...

    async def start(self) -> None:
        """Begins to load; returns at once."""
        ...

    async def drain(self, seconds: float) -> None:
        """Takes nothing new, waits until running requests end or the time is up, fails the rest."""
        ...

    async def stop(self) -> None:
        """Ends the engine and all it started. Idempotent."""
        ...
