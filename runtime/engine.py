"""The engine: one thread that owns the device.

Each turn of its loop takes in new requests and aborts, plans step n+1, dispatches it, and only then reads the
tokens of step n, so host work and device work overlap. It is given a model and token ids and knows no text,
no files and no HTTP. What the rest of the process sees are thread-safe calls in and `TokenEvent`s out.
"""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
from jax.sharding import Mesh

from ..model.config import ModelConfig
from ..model.sharding import create_mesh
from .assembly import assemble
from .executables import CompilationCounter, Progress
from .mailboxes import Mailboxes
from .pages import PagePool
from .request import EngineStats, InvalidRequest, NotReady, Request, TokenEvent, TokenLogprobs, draw_seed
from .runner import Flight, Followers
from .scheduler import Row, Scheduler, Sequence
from .settings import EngineSettings

log = logging.getLogger(__name__)

Events = Callable[[list[TokenEvent]], None]
"""Hears all events of a step at once, on the engine's thread; must not block."""

_IDLE_SECONDS = 0.5


class Engine:
    """Continuous batching of requests over one model on one mesh of devices.

    Life: construct, `warm_up`, `start`, any number of `submit` and `abort` from any thread, `stop`.

    Attributes:
      context: the longest sequence it serves, in tokens. slots: sequences that decode together.
      vocabulary: V. kernels: `(operation, way)` of those that compute.
      beat: `time.monotonic()` of the loop's last turn; it turns at least every half second unless a step
        takes longer.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Mapping[str, jax.Array],
        settings: EngineSettings | None = None,
        on_events: Events | None = None,
        mesh: Mesh | None = None,
        followers: Followers | None = None,
    ) -> None:
        """Sizes the KV pool; compiles nothing yet.

        Args:
          parameters: by the names of `model.parameters.parameter_shapes`, all of one dtype, on the mesh as
            `model.sharding.placements` says.
          on_events: hears every step's events; None keeps them for `stream`.
          mesh: the devices; None for the one that the parameters are on.
          followers: other processes that hold a part of the mesh (see `lockstep.py`).

        Raises:
          ConfigError: settings that the model or machine cannot honour.
          OutOfMemory: no room for the KV pool.
        """
        settings = settings or EngineSettings()
        mesh = mesh or create_mesh(1, list(parameters["embed"].devices()))
        self._runner = assemble(config, parameters, settings, mesh, followers)
        shapes, pages = self._runner.shapes, self._runner.pages
        self.vocabulary = config.vocabulary
        self.kernels = self._runner.kernels
        log.info("kernels: %s", ", ".join("=".join(pair) for pair in self.kernels))
        self.slots = shapes.slots
        self.context = min(settings.context or config.context, pages * shapes.page_size)
        self._pages = PagePool(pages)
        self._scheduler = Scheduler(
            slots=shapes.slots, pages=self._pages, page_size=shapes.page_size, budget=shapes.budget
        )
        self._compilations = CompilationCounter()
        self._mailboxes = Mailboxes()
        self._on_events = on_events or self._mailboxes.deliver
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._open: set[str] = set()
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._steps = self._prompt_tokens = self._generated_tokens = 0
        self.beat = time.monotonic()

    def warm_up(self, progress: Progress | None = None) -> None:
        """Allocates the KV pool, compiles every step and runs each once; `progress(done, total)`."""
        self._runner.warm_up(progress or (lambda done, total: None))

    @property
    def slowest_step(self) -> float:
        """Seconds of the slowest step during warm-up."""
        return self._runner.slowest_step

    def start(self) -> None:
        """Starts the engine's thread; from here on nothing is compiled."""
        self._compilations.start()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; requests in flight end with an error event. Idempotent."""
        self._stopping = True
        self._inbox.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join()
        self._runner.close()
        self._compilations.stop()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the load; fields may be a step apart."""
        return EngineStats(
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            free_pages=self._pages.available,
            total_pages=self._pages.total,
            steps=self._steps,
            preemptions=self._scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            compilations=self._compilations.count,
        )

    def submit(self, request: Request) -> None:
        """Hands a request over; returns at once.

        Raises:
          InvalidRequest: it can never be served by this engine.
          NotReady: the engine does not run.
        """
        sequence = self._admit(request)
        with self._door:
            if not self.alive or self._stopping:
                raise NotReady("the engine does not run")
            if request.id in self._open:
                raise InvalidRequest(f"request {request.id!r} is in flight; expected a new id", "id")
            self._open.add(request.id)
            self._inbox.put(lambda: self._take_in(sequence))

    def abort(self, request_id: str) -> None:
        """Ends a request wherever it is; no more of its events come. Unknown ids are ignored."""
        self._inbox.put(lambda: self._drop(request_id))

    def stream(self, request: Request) -> Iterator[TokenEvent]:
        """Submits a request and yields its events; for engines without an `on_events` of their own.

        Leaving the iteration early aborts the request.

        Raises:
          InvalidRequest, NotReady: as `submit`.
          EngineFailed: the request failed.
        """
        with self._submitted([request]):
            yield from self._mailboxes.read(request.id)

    def generate(self, requests: Iterable[Request]) -> Iterator[list[TokenEvent]]:
        """Submits all requests at once and yields each one's events, in the requests' order.

        Raises as `stream` does; whatever still runs when the iteration is left is aborted.
        """
        requests = list(requests)
        with self._submitted(requests):
            for request in requests:
                yield list(self._mailboxes.read(request.id))

    @contextlib.contextmanager
    def _submitted(self, requests: list[Request]) -> Iterator[None]:
        opened: list[str] = []
        try:
            for request in requests:
                self._mailboxes.open(request.id)
                opened.append(request.id)
                self.submit(request)
            yield
        finally:
            for request_id in opened:
                self.abort(request_id)
                self._mailboxes.close(request_id)

    def _admit(self, request: Request) -> Sequence:
        params, prompt = request.params, request.prompt
        if not prompt:
            raise InvalidRequest("the prompt is empty; expected at least one token", "prompt")
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token id {wrong} in the prompt; expected 0 to {self.vocabulary - 1}", "prompt"
            )
        if not 0 <= request.choice < 2**31:
            raise InvalidRequest(f"choice is {request.choice}; expected 0 to {2**31 - 1}", "choice")
        limit = self.context if params.max_tokens is None else len(prompt) + params.max_tokens
        if limit > self.context or len(prompt) >= self.context:
            raise InvalidRequest(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens}; "
                f"expected at most {self.context} together",
                "max_tokens" if len(prompt) < self.context else "prompt",
            )
        return Sequence(
            request=request,
            seed=draw_seed() if params.seed is None else params.seed % 2**64,
            limit=limit,
            arrival=next(self._arrivals),
            tokens=list(prompt),
        )

    def _take_in(self, sequence: Sequence) -> None:
        self._sequences[sequence.request.id] = sequence
        self._scheduler.add(sequence)

    def _drop(self, request_id: str) -> None:
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._open.discard(request_id)
            self._scheduler.finish(sequence)

    def _run(self) -> None:
        try:
            flight: Flight | None = None
            while not self._stopping:
                self.beat = time.monotonic()
                self._hear(idle=flight is None and not self._sequences)
                plan = self._scheduler.plan()
                following = self._runner.launch(plan) if plan else None
                if flight:
                    self._on_events(self._settle(flight))
                flight = following
            self._fail_all("the engine was stopped")
        except Exception as error:
            log.exception("the engine thread ends")
            self._fail_all(f"{type(error).__name__}: {error}")

    def _hear(self, *, idle: bool) -> None:
        """Carries out what other threads asked for; when idle, waits a moment for it."""
        try:
            self._inbox.get(timeout=_IDLE_SECONDS if idle else 0.0)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _settle(self, flight: Flight) -> list[TokenEvent]:
        """Reads a step's samples and gives each to its sequence; those that ended meanwhile get none."""
        events = []
        for row, token, report in self._runner.read(flight):
            row.sequence.pending -= 1
            if not row.sequence.finished:
                events.append(self._advance(row.sequence, token, report))
        self._steps += 1
        self._prompt_tokens += sum(_prompt_tokens(row) for row in flight.plan.rows)
        return events

    def _advance(self, sequence: Sequence, token: int, report: TokenLogprobs | None) -> TokenEvent:
        """Gives a sequence its next token, or ends it."""
        request = sequence.request
        if token < 0:
            self._drop(request.id)
            reason = "the model's output is not finite"
            return TokenEvent(request_id=request.id, finish="error", error=reason)
        if token in request.params.stop_ids and not request.params.ignore_eos:
            self._drop(request.id)
            return TokenEvent(request_id=request.id, finish="stop")
        sequence.tokens.append(token)
        self._generated_tokens += 1
        ended = len(sequence.tokens) >= sequence.limit
        if ended:
            self._drop(request.id)
        finish = "length" if ended else None
        return TokenEvent(request_id=request.id, token=token, logprobs=report, finish=finish)

    def _fail_all(self, reason: str) -> None:
        """Tells every request, also those still in the inbox, that it has failed; no more come in."""
        with self._door:
            self._stopping = True
        self._hear(idle=False)
        ids = list(self._sequences)
        for request_id in ids:
            self._drop(request_id)
        self._on_events([TokenEvent(request_id=i, finish="error", error=reason) for i in ids])


def _prompt_tokens(row: Row) -> int:
    return max(0, min(row.start + row.count, len(row.sequence.request.prompt)) - row.start)
