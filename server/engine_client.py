"""The interface between the web process and the engines that run the model.

Routes use `EngineClient`: submit a request, iterate over its events, abort it, read the state. `EngineGroup`
(supervised child processes) implements it in production, `FakeEngine` in protocol tests. Every call is made
from the event loop's thread, and none of them blocks.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from ..runtime.request import EngineFailed, EngineStats, Request, TokenEvent

EngineState = Literal["starting", "loading", "ready", "restarting", "draining", "stopped"]
"""`starting`: no process yet. `loading`: it reads weights or compiles. `restarting`: it was lost and a new
process is starting. `draining`: accepts no new requests. `stopped`: will not be restarted."""

MoveCause = Literal["engine_lost", "preempted", "draining", "balanced"]
"""Why a sequence was moved off an engine. `engine_lost`: the engine was lost. `preempted`: another client is
entitled to its slot, or a sequence of a better rank needs its place. `draining`: the engine accepts no new
requests. `balanced`: another engine has started and had fewer sequences."""

MOVE_CAUSES: tuple[MoveCause, ...] = get_args(MoveCause)


class ShutDown(EngineFailed):
    """The server shut down, and the time for running requests was up."""


class RequestFailed(EngineFailed):
    """The engine failed this request and continues to serve others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """The properties that an engine reports when it is ready.

    Attributes:
      context: the longest sequence it serves, prompt and completion together.
      vocabulary: V; larger ids are refused.
      slots: sequences that decode at the same time.
      fingerprint: ten hex digits of a hash of weights, dtype, versions and mesh: changes if outputs may
        change.
      scores: prompts can be scored. platform: `cpu`, `gpu` or `tpu`.
      max_input: the operator's bound on a prompt's tokens; None leaves it to the context.
      page_size: tokens per page of the KV cache. pages: the number of pages; 0 if unknown.
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
        """The most tokens that a prompt may have: at least one more token must fit."""
        return min(self.max_input or self.context, self.context - 1)


class EventStream(Protocol):
    """The events of one accepted request, in order."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yields events up to and including the one with `finish`.

        Raises:
          EngineFailed: the engine was lost before the request had finished.
          ShutDown: the server shut down before the request had finished.
        """
        ...

    def abort(self) -> None:
        """Aborts the request in any state. Idempotent, immediate, never raises; a no-op once finished."""
        ...


class Replica(Protocol):
    """The observable state of a running, starting or failed engine."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo | None:
        """Its properties; None until it has been ready once."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot of its load."""
        ...

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine's last frame; 0.0 while it has no process."""
        ...

    @property
    def ready_in(self) -> float:
        """Seconds until it is probably ready, if it is not."""
        ...


class EngineClient(Replica, Protocol):
    """One or several engines, and the operations on them."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """The engines that it consists of, by number; itself if it is a single one."""
        ...

    @property
    def queued(self) -> tuple[int, int]:
        """The queue in front of all engines: the number of interactive sequences and of their tokens."""
        ...

    @property
    def moved(self) -> Mapping[MoveCause, int]:
        """How often since the start a sequence was moved off an engine, to continue on another one or later
        on the same one, by cause."""
        ...

    @property
    def takes(self) -> bool:
        """Whether it accepts sequences: an engine is ready, or was and restarts; then they wait for it."""
        ...

    def submit(self, requests: Sequence[Request]) -> Sequence[EventStream]:
        """Submits the sequences of a call, all or none.

        Raises:
          NotReady: it accepts none.
          Overloaded: they would wait too long, or there are too many.
        """
        ...

    def profile(self, on: bool) -> None:
        """Starts or stops a profile of the device and the engine. Raises NotReady: no engine is ready."""
        ...

    async def start(self) -> None:
        """Starts loading; returns at once."""
        ...

    async def drain(self, seconds: float) -> None:
        """Accepts no new requests, waits for running ones until the time is up, and fails the rest."""
        ...

    async def stop(self) -> None:
        """Ends the engine and the processes that it started. Idempotent."""
        ...
