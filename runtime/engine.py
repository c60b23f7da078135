"""The engine's interface to the rest of the process: thread-safe calls in, `TokenEvent`s out.

It works with a model and token ids, without text, files or HTTP. One thread owns the device (`loop.py`).
After the start, another thread compiles the steps that the first requests do not need.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from dataclasses import asdict, replace

from jax.sharding import Mesh

from ..model.adapter import Adapter
from ..model.config import ModelConfig
from ..model.lora import InvalidAdapter
from ..model.rotary import is_long
from ..model.sharding import create_mesh
from ..model.transformer import AfterLayer
from .device.assembly import assemble, shares_prefixes
from .device.executables import CompilationCounter, Progress
from .device.loading import Loading, Parameters, laid_out
from .device.runner import Followers
from .device.settings import EngineSettings
from .device.trials import decode_seconds, prompt_seconds
from .event_queues import EventQueues
from .generation import Generation
from .loop import Events, Loop
from .phases import Profiler
from .policy.adapters import HostAdapter
from .policy.constraints import Grammars, create_matcher, no_grammars
from .policy.page_file import PageFile
from .policy.pages import PagePool
from .policy.scheduler import Scheduler
from .policy.scores import PromptScores
from .policy.sequence import Sequence
from .request import EngineStats, InvalidRequest, Request, TokenEvent, draw_seed
from .scorer import Scorer
from .threads import AwaitedThread
from .validation import check

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching of requests over one model on one mesh of devices.

    Life cycle: construct, `warm_up`, `start`, any number of `submit` and `abort` from any thread, `stop`.

    Attributes:
      context: the longest sequence it serves, in tokens. slots: sequences that decode together.
      page_size: tokens per page. pages: of the KV pool, without the trash page.
      vocabulary: V. kernels: the `(operation, backend)` pairs in use.
      event_queues: receive the events, if no `on_events` does.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters | Loading,
        settings: EngineSettings | None = None,
        on_events: Events | None = None,
        mesh: Mesh | None = None,
        followers: Followers | None = None,
        grammars: Grammars = no_grammars,
        page_file: PageFile | None = None,
        after_layer: AfterLayer | None = None,
    ) -> None:
        """Sizes the KV pool; compiles nothing yet.

        Args:
          parameters: by the names of `model.parameters.parameter_shapes`, all of one dtype, on the mesh as in
            `model.sharding.placements`; a mapping stays as it is. `warm_up` waits for those that are still
            loading, and frees each one after packing it, unless others hold it.
          on_events: receives every step's events; None keeps them for `stream`.
          mesh: the devices; None for the one that holds the parameters.
          followers: other processes that hold a part of the mesh (see `lockstep.py`).
          grammars: compiles the grammars of requests, if the settings allow grammars.
          page_file: where copies of full pages outlive the engine; None keeps none.
          after_layer: see `Transformer.hidden`.

        Raises:
          ConfigError: settings that the model or machine does not support.
          OutOfMemory: no room for the KV pool.
        """
        settings = settings or EngineSettings()
        if mesh is None:
            assert not isinstance(parameters, Loading), "parameters that are loading need a mesh"
            mesh = create_mesh(1, list(parameters["norm"].devices()))
        runner = assemble(config, parameters, settings, mesh, followers, page_file, after_layer)
        shapes, pages = runner.shapes, runner.pages
        self._config, self._settings, self.vocabulary = config, settings, config.vocabulary
        self.kernels = runner.kernels
        log.info("kernels: %s", ", ".join("=".join(pair) for pair in self.kernels))
        self.slots = shapes.slots
        self.page_size, self.pages = shapes.page_size, pages
        self.context = min(settings.context or config.context, pages * shapes.page_size)
        self._grammars = grammars if settings.grammars else no_grammars
        self._pages = PagePool(pages)
        scheduler = Scheduler(
            slots=shapes.slots,
            pages=self._pages,
            page_size=shapes.page_size,
            budget=shapes.budget,
            share=shares_prefixes(config, settings),
            speculate=settings.speculation,
            host=runner.host_pages,
            adapters=shapes.adapters,
        )
        self._adapters: dict[str, HostAdapter] = {}
        self._compilations = CompilationCounter()
        self.event_queues = EventQueues()
        self._loop = Loop(runner, scheduler, on_events or self.event_queues.deliver)
        self._arrivals = itertools.count()
        self._compiler_stop = threading.Event()
        self._compiler = AwaitedThread("compilation", self._compile_rest, self._compiler_stop.set)
        self._profiler = Profiler(settings.profile)

    def warm_up(self, progress: Progress | None = None) -> None:
        """Allocates the KV pool and compiles the steps that are enough for any request.

        Args:
          progress: called with `(done, total)` after each.
        """
        self._loop.runner.warm_up(progress or (lambda done, total: None))

    def compile_all(self, progress: Progress) -> None:
        """Compiles the remaining steps at once, for a process that serves nothing.

        After `warm_up`, instead of `start`.
        """
        self._loop.runner.compile_all(progress)

    def create_scorer(self) -> Scorer:
        """A scorer that shares the engine's weights; after `warm_up`."""
        runner = self._loop.runner
        return Scorer(runner.skeleton, runner.leaves, runner.mesh, runner.cache_dtype)

    def edited(self, after_layer: AfterLayer) -> "Engine":
        """Another engine, not warmed up, over the same weights, with a function that changes the stream.

        Its pool has pages for two sequences of the longest length. After `warm_up` of this engine.
        """
        runner = self._loop.runner
        shared = laid_out(runner.leaves, runner.dtype, runner.skeleton.target.quantization, runner.mesh)
        pages = max(self.slots, 2 * -(-self.context // self.page_size))
        settings = replace(self._settings, kv_pages=pages, context=self.context)
        engine = Engine(
            self._config,
            shared,
            settings,
            mesh=runner.mesh,
            grammars=self._grammars,
            after_layer=after_layer,
        )
        engine._adapters = self._adapters
        return engine

    def add_adapter(self, id: str, adapter: Adapter) -> None:
        """Lets requests name an adapter; from any thread, at any time. A known id is ignored.

        It is kept in host memory, and loaded onto the device when a sequence with it begins.

        Args:
          id: of these weights alone: pages of KV cache are shared between requests with the same one.

        Raises:
          InvalidAdapter: it does not belong to the model, or the settings have no room for it.
        """
        shapes = self._loop.runner.adapters
        if shapes is None:
            raise InvalidAdapter("the engine has no room for adapters; expected max_adapters of at least 1")
        if id not in self._adapters:
            shapes.check(adapter)
            self._adapters[id] = HostAdapter(id, shapes.lay_out(adapter), frozenset(adapter.weights))

    def remove_adapter(self, id: str) -> None:
        """Refuses new requests with an adapter; those that it has go on with it. An unknown id is ignored."""
        self._adapters.pop(id, None)

    @property
    def slowest_step(self) -> float:
        """Seconds of the slowest step during warm-up."""
        return self._loop.runner.slowest_step

    @property
    def decode_seconds(self) -> float:
        """Seconds of a step in which every slot decodes, from a trial; 0.0 before `warm_up`.

        Until a decode step for all slots is compiled, this is the time of the larger step that replaces it.
        """
        return decode_seconds(self._loop.runner.ready, self.slots)

    @property
    def prompt_seconds(self) -> float:
        """Seconds per token of a prompt in a full step, from a trial; 0.0 before `warm_up`."""
        return prompt_seconds(self._loop.runner.ready)

    @property
    def scores(self) -> bool:
        """Whether it can score prompts."""
        return self._loop.runner.shapes.scores

    def start(self) -> None:
        """Starts the engine's thread, which compiles nothing, and one that compiles the remaining steps."""
        self._compilations.start(self._loop.thread)
        self._loop.start()
        self._compiler.start()

    def stop(self) -> None:
        """Ends the engine's thread; requests in flight end with an error event. Idempotent.

        The compilation of a step cannot be interrupted: that thread ends after it, and until then the
        parameters stay in memory.
        """
        self._compiler_stop.set()
        self._loop.stop()
        self._loop.runner.close()
        self._compilations.stop()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._loop.alive

    @property
    def beat(self) -> float:
        """`time.monotonic()` of the engine's last sign of life: every half second, or every step."""
        return self._loop.beat

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the load; fields may be a step apart."""
        loop, runner, scheduler = self._loop, self._loop.runner, self._loop.scheduler
        return EngineStats(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            free_pages=self._pages.available,
            kept_pages=self._pages.kept,
            total_pages=self._pages.total,
            preemptions=scheduler.preemptions,
            restored_pages=scheduler.prefix.restored,
            compilations=self._compilations.count,
            buckets_ready=len(runner.ready),
            buckets=len(runner.shapes.buckets()),
            decode_seconds=self.decode_seconds,
            prompt_seconds=self.prompt_seconds,
            seconds=dict(loop.phases.seconds),
            **asdict(loop.outputs.counts),
        )

    def profile(self, on: bool) -> None:
        """Starts or ends a profile in the folder of the settings; from any thread; can take seconds."""
        self._profiler.switch(on)

    def next_arrival(self) -> int:
        """A position in the order of arrival, for a request that is submitted later; from any thread."""
        return next(self._arrivals)

    def submit(self, request: Request, arrival: int | None = None) -> None:
        """Queues a request; returns when its grammar, if it has one, is compiled.

        Args:
          arrival: its position in the order of arrival, from `next_arrival`; None for the last one.

        Raises:
          InvalidRequest: this engine can never serve it.
          NotReady: the engine does not run.
        """
        arrival = self.next_arrival() if arrival is None else arrival
        self._loop.submit(self._create_sequence(request, arrival))

    def abort(self, request_id: str) -> None:
        """Ends a request, running or not; it receives no more events. Unknown ids are ignored."""
        self._loop.abort(request_id)

    def stream(self, request: Request) -> Iterator[TokenEvent]:
        """Submits a request and yields its events; for engines without `on_events`.

        Leaving the iteration early aborts the request.

        Raises:
          InvalidRequest, NotReady: as in `submit`; the former also if an invalid parameter shows later.
          EngineFailed: the request failed.
        """
        self.event_queues.open(request.id)
        try:
            self.submit(request)
            yield from self.event_queues.read(request.id)
        finally:
            self.abort(request.id)
            self.event_queues.close(request.id)

    def generate(self, requests: Iterable[Request]) -> list[list[TokenEvent]]:
        """Runs requests and returns the events of each, in the order of the requests. Raises as `stream`."""
        return self.generation(list(requests)).run()

    def generation(self, requests: List[Request]) -> Generation:
        """The same, not begun: it can be stopped, and reports its progress.

        Raises:
          InvalidRequest: this engine can never serve one of them.
        """
        self.check(requests)
        return Generation(self, self.event_queues, requests)

    def check(self, requests: Iterable[Request]) -> None:
        """Raises InvalidRequest if this engine can never serve one of the requests."""
        for request in requests:
            check(request, self.vocabulary, self.context)

    def _create_sequence(self, request: Request, arrival: int) -> Sequence:
        limit, params = check(request, self.vocabulary, self.context), request.params
        adapter = self._adapters.get(request.adapter)
        if request.adapter and adapter is None:
            raise InvalidRequest(f"adapter {request.adapter!r} is not loaded", "adapter")
        if adapter is not None:  # its keys are not those of the base model
            request = replace(request, cache_salt=f"{request.cache_salt}\0adapter {adapter.id}")
        if is_long(self._config, len(request.prompt)):  # its keys are not those of a shorter prompt
            request = replace(request, cache_salt=f"{request.cache_salt}\0long")
        if params.scores_prompt and not self.scores:
            raise InvalidRequest(
                "this engine does not score prompts; expected no prompt_logprobs", "prompt_logprobs"
            )
        scored = params.scores_prompt and not request.generated  # else an earlier first event has reported it
        return Sequence(
            request=request,
            seed=draw_seed() if params.seed is None else params.seed % 2**64,
            limit=limit,
            arrival=arrival,
            tokens=[*request.prompt, *request.generated],
            submitted=time.monotonic(),
            matcher=create_matcher(request, self._grammars),
            scores=PromptScores(len(request.prompt)) if scored else None,
            adapter=adapter,
        )

    def _compile_rest(self) -> None:
        try:
            self._loop.runner.compile_rest(self._compiler_stop, self._loop.quiet)
        except Exception:
            log.exception("compilation failed; the engine continues with the steps compiled so far")
