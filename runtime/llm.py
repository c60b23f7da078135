"""The interface for scripts: a model by name, texts in, texts out. No server, no event loop.

`LLM` combines the same parts as the server's engine process: a checkpoint, its tokenizer, an `Engine`. With
`texts.py` it is the only file of the runtime that imports checkpoints and handles text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType

import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress

from ..checkpoints import (
    Checkpoint,
    GrammarCompiler,
    load_parameters,
    load_tokenizer,
    open_checkpoint,
    read_adapter,
    resolve,
    with_own_bits,
)
from ..checkpoints.sources import cache_folder
from .compilation_cache import keep_compiled
from .device.settings import EngineSettings, compute_dtype
from .devices import claim_mesh
from .edited_engines import EditedEngines
from .edits import Edit, Edits, layer_of
from .engine import Engine
from .options import parse_kernels
from .request import InvalidRequest, Request, SamplingParams
from .texts import Completion, Conversation, Prompt, Score, Texts


class LLM:
    """A language model that is loaded, compiled and ready.

    Usable as a context manager; `close` frees its memory. Thread-safe.

    Attributes:
      config: the model's sizes. tokenizer: its tokenizer and chat template. engine: the engine that runs it.
      texts: from prompts to requests, and from events to completions.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        revision: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        kv_cache_dtype: str | None = None,
        slots: int | None = None,
        context: int | None = None,
        kv_pages: int | None = None,
        mesh: str | None = None,
        kernels: Sequence[str] = (),
        chat_template: Path | None = None,
        deterministic: bool = False,
        speculation: bool = True,
        max_adapters: int = 0,
        max_adapter_rank: int = 16,
    ) -> None:
        """Loads a model and compiles its steps.

        Args:
          model: a folder, a GGUF, a store, a hub id or a bundled name; None for the bundled default.
          revision: of a hub id. dtype: `float32` or `bfloat16`; None for the machine's default.
          quantize: `int8` or `int4` for linear weights, with int8 arithmetic; `fp8` for all but the head;
            `as-is` keeps the bits of a GGUF's, `none` widens them; None keeps them on a CPU with native
            kernels.
          kv_cache_dtype, slots, context, kv_pages, deterministic, speculation, max_adapters,
            max_adapter_rank: see `EngineSettings`.
          mesh: `model=N` shards the model over N devices.
          kernels: `operation=backend` items that replace our choice.
          chat_template: a file that replaces the model's own.

        Raises:
          CheckpointError, ConfigError, OutOfMemory: the model cannot be found, read or loaded.
        """
        settings = EngineSettings(
            slots=slots,
            context=context,
            kv_pages=kv_pages,
            kv_cache_dtype=kv_cache_dtype,
            kernels=parse_kernels(kernels),
            deterministic=deterministic,
            speculation=speculation,
            grammars=True,
            max_adapters=max_adapters,
            max_adapter_rank=max_adapter_rank,
        )
        path = resolve(model, revision=revision)
        checkpoint = open_checkpoint(path, quantize)
        self.config = checkpoint.config
        self.tokenizer = load_tokenizer(path, chat_template)
        self.texts = Texts(self.tokenizer, checkpoint.generation)
        devices = claim_mesh(mesh)
        self._start(with_own_bits(checkpoint, quantize, devices), settings, devices, dtype)

    def _start(self, checkpoint: Checkpoint, settings: EngineSettings, mesh: Mesh, dtype: str | None) -> None:
        """Loads the weights onto a mesh and starts an engine."""
        device = mesh.local_devices[0]
        keep_compiled(cache_folder(), device.device_kind)
        grammars = GrammarCompiler(lambda: self.tokenizer, self.config.vocabulary)
        parameters = load_parameters(checkpoint, compute_dtype(dtype, device), mesh=mesh)
        self.engine = Engine(self.config, parameters, settings, mesh=mesh, grammars=grammars)
        del parameters  # now the engine alone holds them, and frees each one when it has packed it
        self.engine.warm_up()
        self.engine.start()
        self._scorer = self.engine.create_scorer()
        self._edited = EditedEngines(self.engine)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        edit: Mapping[int, Edit] | None = None,
        adapter: str = "",
        progress: bool = True,
    ) -> list[Completion]:
        """Continues prompts: any number, in the order in which they are given.

        Ctrl-C ends it early: it returns what there is, with `finish="interrupted"` where that is not all.

        Args:
          prompts: one prompt or several.
          params: for all of them; None for the model's own defaults.
          edit: functions that change the residual stream after a layer (activation steering), by the layer's
            number: 0 is the first, -1 the last. They are compiled into steps; those of the last call stay.
          adapter: the name of a LoRA adapter, see `add_adapter`; empty for the model alone.
          progress: show a progress bar.

        Raises:
          InvalidRequest: a prompt is empty or too long, or there is no such adapter.
          EngineFailed: the engine failed while it ran.
          InvalidEdit: there is no such layer, or a function returns another shape or type.
        """
        requests = self.texts.requests(self.texts.encode_all(prompts), params, adapter)
        return self._run(requests, edit, progress)

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        edit: Mapping[int, Edit] | None = None,
        adapter: str = "",
        progress: bool = True,
    ) -> list[Completion]:
        """Answers one conversation or several; otherwise as `generate`. Raises TemplateError, too."""
        requests = self.texts.requests(self.texts.encode_chats(conversations), params, adapter)
        return self._run(requests, edit, progress)

    def stream(
        self, prompt: Prompt | Conversation, params: SamplingParams | None = None, *, adapter: str = ""
    ) -> Iterator[str]:
        """Yields the continuation of a prompt, or the answer to a conversation, in pieces of text."""
        detokenizer = self.tokenizer.detokenizer()
        for event in self.engine.stream(self.texts.requests([self.texts.encode(prompt)], params, adapter)[0]):
            if event.token is not None and (text := detokenizer.push(event.token)):
                yield text
        if rest := detokenizer.flush():
            yield rest

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Lets `generate`, `chat` and `stream` use a LoRA adapter, a folder that PEFT saved.

        The model must have been made with `max_adapters`; more adapters than that are swapped.

        Raises:
          CheckpointError: the folder cannot be read, or belongs to another model.
          InvalidAdapter: its rank is above `max_adapter_rank`, or it changes experts.
        """
        self.engine.add_adapter(name, read_adapter(Path(path), self.config))

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after each token: f32 `[T, V]`; row t has the logits of token t + 1."""
        return self._scorer.logits(tokens)

    def logprobs(self, prompt: Prompt) -> np.ndarray:
        """Natural log-probability of each token except the first, given those before it: f32 `[T - 1]`."""
        return self._scorer.logprobs(self.texts.encode(prompt))

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Prompt]) -> list[Score]:
        """How likely each continuation is after its prompt.

        Prompt and continuation are encoded as one text, whose tokens are split where those of the prompt
        alone end, as lm-evaluation-harness does. Token ids are joined as they are.

        Raises:
          InvalidRequest: a pair is too long, or one of its parts has no tokens, or their numbers differ.
        """
        if len(prompts) != len(continuations):
            reason = f"{len(continuations)} continuations; expected {len(prompts)}, one for each prompt"
            raise InvalidRequest(reason, "continuations")
        pairs = [self.texts.joined(*pair) for pair in zip(prompts, continuations, strict=True)]
        found = self._scorer.next_tokens([self._checked(tokens) for tokens, _ in pairs])
        return [
            Score(
                tokens=tuple(tokens[start:]), logprobs=logprobs[start - 1 :], greedy=all(greedy[start - 1 :])
            )
            for (tokens, start), (logprobs, greedy) in zip(pairs, found, strict=True)
        ]

    def hidden(
        self,
        prompts: Prompt | Sequence[Prompt],
        layers: Sequence[int] = (-1,),
        *,
        edit: Mapping[int, Edit] | None = None,
    ) -> list[np.ndarray]:
        """The residual stream of each prompt after some layers: f32 `[T, layers, D]`.

        After layer n, it is what `model.layers[n]` returns: `hidden_states[n + 1]` of transformers, except
        for the last layer, after which transformers has normalised it.

        Args:
          layers: 0 is the first, -1 the last. edit: as in `generate`.

        Raises:
          InvalidRequest: a prompt is empty or too long. InvalidEdit: as in `generate`.
        """
        ids = [self._checked(tokens) for tokens in self.texts.encode_all(prompts)]
        numbers = tuple(layer_of(layer, self.config.layers) for layer in layers)
        return self._scorer.residuals(ids, numbers, Edits.of(edit, self.config.layers) if edit else None)

    def close(self) -> None:
        """Ends the engine; running requests fail. Idempotent."""
        self._edited.stop()
        self.engine.stop()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def engine_with(self, edit: Mapping[int, Edit] | None) -> AbstractContextManager[Engine]:
        """The engine, or one with these edits, which runs as long as the block."""
        return self._edited.use(Edits.of(edit, self.config.layers)) if edit else nullcontext(self.engine)

    def _run(
        self, requests: list[Request], edit: Mapping[int, Edit] | None, progress: bool
    ) -> list[Completion]:
        with self.engine_with(edit) as engine, _shown(len(requests), on=progress) as advance:
            events = engine.generation(requests).run(advance)
        return [self.texts.completion(*each) for each in zip(requests, events, strict=True)]

    def _checked(self, tokens: list[int]) -> list[int]:
        self.engine.check([Request(id="", prompt=tuple(tokens), params=SamplingParams(max_tokens=None))])
        return tokens


@contextmanager
def _shown(total: int, *, on: bool) -> Iterator[Callable[[], None]]:
    """Shows a progress bar; yields what advances it."""
    with Progress(console=Console(stderr=True), disable=not on) as bar:
        task = bar.add_task("generating", total=total)
        yield lambda: bar.advance(task)
