"""The engine: one thread that owns the device.

Each turn of its loop takes in new requests and aborts, plans step n+1, dispatches it, and only then reads the
tokens of step n, so host work and device work overlap. Only where drafts are worth more than that is step n
read first. It is given a model and token ids and knows no text, no files and no HTTP. What the rest of the
process sees are thread-safe calls in and `TokenEvent`s out.
"""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict

import jax
from jax.sharding import Mesh

from ..model.config import ModelConfig
from ..model.rotary import follows_length
from ..model.sharding import create_mesh
from .admission import check
from .assembly import assemble
from .buckets import Bucket
from .constraints import Grammars, no_grammars
from .executables import CompilationCounter, Progress
from .ledger import Ledger
from .mailboxes import Mailboxes
from .pages import PagePool
from .phases import Phases, Profiler
from .request import EngineStats, InvalidRequest, NotReady, Request, TokenEvent, draw_seed
from .runner import Flight, Followers
from .scheduler import Scheduler
from .scores import PromptScores
from .sequence import Plan, Sequence
from .settings import EngineSettings

log = logging.getLogger(__name__)

Events = Callable[[list[TokenEvent]], None]
"""Hears all events of a step at once, on the engine's thread; must not block."""

_IDLE_SECONDS = 0.5
_COMPILER_SECONDS = 5.0
"""A step that is being compiled cannot be interrupted; of a large model nobody waits for it to stop."""


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
        grammars: Grammars = no_grammars,
    ) -> None:
        """Sizes the KV pool; compiles nothing yet.

        Args:
          parameters: by the names of `model.parameters.parameter_shapes`, all of one dtype, on the mesh as
            `model.sharding.placements` says.
          on_events: hears every step's events; None keeps them for `stream`.
          mesh: the devices; None for the one that the parameters are on.
          followers: other processes that hold a part of the mesh (see `lockstep.py`).
          grammars: compiles the grammars of requests, where the settings allow any.

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
        self._grammars = grammars if settings.grammars else no_grammars
        self._pages = PagePool(pages)
        self._scheduler = Scheduler(
            slots=shapes.slots,
            pages=self._pages,
            page_size=shapes.page_size,
            budget=shapes.budget,
            share=settings.prefix_cache and not follows_length(config),
            speculate=settings.speculation,
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
        self._compiler_stop = threading.Event()
        self._compiler = threading.Thread(target=self._compile_rest, name="compiler", daemon=True)
        self._ledger = Ledger(self._drop)
        self._phases = Phases()
        self._profiler = Profiler(settings.profile)
        self._free_since = 0.0
        self.beat = time.monotonic()

    def warm_up(self, progress: Progress | None = None) -> None:
        """Allocates the KV pool and compiles what any request needs; `progress(done, total)`."""
        self._runner.warm_up(progress or (lambda done, total: None))

    @property
    def slowest_step(self) -> float:
        """Seconds of the slowest step during warm-up."""
        return self._runner.slowest_step

    def start(self) -> None:
        """Starts the engine's thread, which compiles nothing, and another, which compiles what is left."""
        for bucket, seconds in self._runner.ready.items():
            self._note_trial(bucket, seconds)
        self._compilations.start(self._thread)
        self._thread.start()
        self._compiler.start()

    def stop(self) -> None:
        """Ends the thread; requests in flight end with an error event. Idempotent."""
        self._stopping = True
        self._inbox.put(lambda: None)
        self._compiler_stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._compiler.is_alive():
            self._compiler.join(_COMPILER_SECONDS)
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
            preemptions=self._scheduler.preemptions,
            compilations=self._compilations.count,
            buckets_ready=len(self._runner.ready),
            buckets=len(self._runner.shapes.buckets()),
            seconds=dict(self._phases.seconds),
            **asdict(self._ledger.counts),
        )

    def profile(self, on: bool) -> None:
        """Begins or ends a profile in the folder of the settings; from any thread, and may take seconds."""
        self._profiler.switch(on)

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
        limit, params = check(request, self.vocabulary, self.context), request.params
        if params.scores_prompt and not self._runner.shapes.scores:
            raise InvalidRequest(
                "this engine scores no prompts; expected none to be scored", "prompt_logprobs"
            )
        return Sequence(
            request=request,
            seed=draw_seed() if params.seed is None else params.seed % 2**64,
            limit=limit,
            arrival=next(self._arrivals),
            tokens=list(request.prompt),
            submitted=time.monotonic(),
            matcher=None if params.grammar is None else self._grammars(params.grammar),
            scores=PromptScores(len(request.prompt)) if params.scores_prompt else None,
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
                flight = self._turn(flight)
            self._fail_all("the engine was stopped")
        except Exception as error:
            log.exception("the engine thread ends")
            self._fail_all(f"{type(error).__name__}: {error}")

    def _turn(self, flight: Flight | None) -> Flight | None:
        """One turn of the loop, with the step that is under way; returns the one that is so then."""
        self.beat = time.monotonic()
        idle = flight is None and not self._sequences
        with self._phases.phase("hear"):
            self._hear(idle=idle)
        if idle:
            self._free_since = time.monotonic()
        if flight and (flight.plan.drafted or self._runner.has_news or self._scheduler.should_see):
            self._settle(flight)
            flight = None
        if self._runner.has_news:
            self._adopt()
        with self._phases.phase("plan"):
            plan = self._scheduler.plan()
        following = self._launch(plan, flight) if plan else None
        if flight:
            self._settle(flight)
        return self._sample_masked(following) if following else None

    def _sample_masked(self, flight: Flight) -> Flight:
        """What came before is known now, so grammars can say what may be drawn in the step under way."""
        if not any(row.held for row in flight.plan.rows):
            return flight
        with self._phases.phase("mask"):
            return self._runner.sample_masked(flight)

    def _compile_rest(self) -> None:
        try:
            self._runner.compile_rest(self._compiler_stop)
        except Exception:
            log.exception("no more steps are compiled; those that there are serve on")

    def _adopt(self) -> None:
        self._note_trial(*self._runner.adopt())
        self._free_since = time.monotonic()

    def _note_trial(self, bucket: Bucket, seconds: float) -> None:
        self._scheduler.pace.tried(bucket.kind, bucket.tokens, seconds)
        self._scheduler.scores |= bucket.kind == "score"

    def _launch(self, plan: Plan, flight: Flight | None) -> Flight:
        """Dispatches a step behind the one that is under way; if the device is done with that, it idles."""
        with self._phases.phase("launch"):
            following = self._runner.launch(plan)
        _note_begun(following)
        if flight is None or flight.done:
            self._phases.seconds["idle"] += following.launched - self._free_since
        return following

    def _hear(self, *, idle: bool) -> None:
        """Carries out what other threads asked for; when idle, waits a moment for it."""
        try:
            self._inbox.get(timeout=_IDLE_SECONDS if idle else 0.0)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _settle(self, flight: Flight) -> None:
        """Reads a step's samples, and tells those who wait for them."""
        with self._phases.phase("wait"):
            sampled = self._runner.read(flight)
        now = time.monotonic()
        self._scheduler.pace.note(
            flight.bucket.kind, flight.bucket.tokens, now - max(flight.launched, self._free_since)
        )
        self._free_since = now
        with self._phases.phase("settle"):
            events = self._ledger.settle(sampled)
            self._ledger.note(flight.plan.rows)
            self._on_events(events)

    def _fail_all(self, reason: str) -> None:
        """Tells every request, also those still in the inbox, that it has failed; no more come in."""
        with self._door:
            self._stopping = True
        self._hear(idle=False)
        ids = list(self._sequences)
        for request_id in ids:
            self._drop(request_id)
        self._on_events([TokenEvent(request_id=i, finish="error", error=reason) for i in ids])


def _note_begun(flight: Flight) -> None:
    """The sequences whose first step this is have waited until now."""
    for row in flight.plan.rows:
        sequence = row.sequence
        if row.first and sequence.waited is None:
            sequence.waited = flight.launched - sequence.submitted
