"""The interface for scripts: a model by name, texts in, texts out. No server, no event loop.

`LLM` combines the same parts as the server's engine process: a checkpoint, its tokenizer, an `Engine`. It is
the only file of the runtime that imports checkpoints and handles text.
"""

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from jax.sharding import Mesh
from rich.progress import track

from ..checkpoints import (
    Checkpoint,
    GrammarCompiler,
    load_parameters,
    load_tokenizer,
    open_checkpoint,
    resolve,
    with_own_bits,
)
from ..checkpoints.sources import cache_folder
from .compilation_cache import keep_compiled
from .device.settings import EngineSettings, compute_dtype
from .devices import claim_mesh
from .engine import Engine
from .options import parse_kernels
from .request import FinishReason, Request, SamplingParams, TokenEvent, TokenLogprobs

Message = Mapping[str, object]
"""A chat message: `{"role": ..., "content": ...}`."""
Prompt = str | Sequence[int]
"""A text, which is encoded with the tokenizer's special tokens, or token ids, which are used unchanged."""
Conversation = Sequence[Message]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
      text: the continuation. tokens: its ids, without the end token.
      logprobs: one entry per token if `SamplingParams.logprobs` requests them, else empty.
      finish: why it ended. prompt_tokens: the number of the prompt's ids.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason
    prompt_tokens: int


class LLM:
    """A language model that is loaded, compiled and ready.

    Usable as a context manager; `close` frees its memory. Thread-safe.

    Attributes:
      config: the model's sizes. tokenizer: its tokenizer and chat template. engine: the engine that runs it.
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
    ) -> None:
        """Loads a model and compiles its steps.

        Args:
          model: a folder, a GGUF, a store, a hub id or a bundled name; None for the bundled default.
          revision: of a hub id. dtype: `float32` or `bfloat16`; None for the machine's default.
          quantize: `int8` or `int4` for linear weights, with int8 arithmetic; `fp8` for all but the head;
            `as-is` keeps the bits of a GGUF's, `none` widens them; None keeps them on a CPU with native
            kernels.
          kv_cache_dtype, slots, context, kv_pages, deterministic, speculation: see `EngineSettings`.
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
        )
        path = resolve(model, revision=revision)
        checkpoint = open_checkpoint(path, quantize)
        self.config, self._defaults = checkpoint.config, checkpoint.generation
        self.tokenizer = load_tokenizer(path, chat_template)
        self._ids = itertools.count()
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

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        progress: bool = True,
    ) -> list[Completion]:
        """Continues prompts, together in one batch.

        Args:
          prompts: one prompt or several.
          params: for all of them; None for the model's own defaults.
          progress: show a progress bar.

        Raises:
          InvalidRequest: a prompt is empty or too long. EngineFailed: the engine failed while it ran.
        """
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        several = cast(Sequence[Prompt], [prompts] if single else prompts)
        ids = [self._encode(prompt) for prompt in several]
        return self._run(ids, params, progress)

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        progress: bool = True,
    ) -> list[Completion]:
        """Answers one conversation, or several together. Raises like `generate`, or TemplateError."""
        single = isinstance(conversations[0], Mapping)
        several = cast(Sequence[Conversation], [conversations] if single else conversations)
        ids = [self._encode(conversation) for conversation in several]
        return self._run(ids, params, progress)

    def stream(self, prompt: Prompt | Conversation, params: SamplingParams | None = None) -> Iterator[str]:
        """Yields the continuation of a prompt, or the answer to a conversation, in pieces of text."""
        detokenizer = self.tokenizer.detokenizer()
        for event in self.engine.stream(self._request(self._encode(prompt), params)):
            if event.token is not None and (text := detokenizer.push(event.token)):
                yield text
        if rest := detokenizer.flush():
            yield rest

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after each token: f32 `[T, V]`; row t has the logits of token t + 1."""
        return self._scorer.logits(tokens)

    def logprobs(self, prompt: Prompt) -> np.ndarray:
        """Natural log-probability of each token except the first, given those before it: f32 `[T - 1]`."""
        return self._scorer.logprobs(self._encode(prompt))

    def close(self) -> None:
        """Ends the engine; running requests fail. Idempotent."""
        self.engine.stop()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt | Conversation) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.tokenizer.encode_chat(cast(list[Message], list(prompt)))
        return [operator.index(token) for token in cast(Sequence[int], prompt)]

    def _request(self, ids: Sequence[int], params: SamplingParams | None) -> Request:
        params = params or self._default_params()
        params = replace(params, stop_ids=(*params.stop_ids, *self._defaults.eos_ids))
        return Request(id=str(next(self._ids)), prompt=tuple(ids), params=params)

    def _default_params(self) -> SamplingParams:
        recommended = asdict(self._defaults)
        del recommended["eos_ids"]
        return SamplingParams(**{name: value for name, value in recommended.items() if value is not None})

    def _run(
        self, prompts: list[list[int]], params: SamplingParams | None, progress: bool
    ) -> list[Completion]:
        requests = [self._request(ids, params) for ids in prompts]
        finished = self.engine.generate(requests)
        if progress:
            finished = track(finished, description="generating", total=len(requests))
        return [self._fold(request, events) for request, events in zip(requests, finished, strict=True)]

    def _fold(self, request: Request, events: list[TokenEvent]) -> Completion:
        tokens = tuple(event.token for event in events if event.token is not None)
        detokenizer = self.tokenizer.detokenizer()
        text = "".join(map(detokenizer.push, tokens)) + detokenizer.flush()
        entries = (event.logprobs for event in events if event.end is None)
        finish = events[-1].finish
        assert finish is not None
        return Completion(
            text=text,
            tokens=tokens,
            logprobs=tuple(entry for entry in entries if entry is not None),
            finish=finish,
            prompt_tokens=len(request.prompt),
        )
