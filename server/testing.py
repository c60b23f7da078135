"""Fakes with hand-computed answers: an engine with a given reply, and a tokenizer whose ids are bytes.

For protocol tests, ours and others'. They implement `EngineClient` and `TextModel` without a model.
"""

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, Literal

from ..model.errors import DistaffError
from ..runtime.request import (
    CacheMiss,
    EngineFailed,
    EngineStats,
    NotReady,
    Overloaded,
    Request,
    TokenEvent,
    TokenLogprobs,
)
from .engine_client import EngineInfo, EngineState, MoveCause, ShutDown

BOS, EOS, TURN = 256, 257, 258
VOCABULARY = 259

Script = Callable[[Request], Sequence[int]]


class FakeText:
    """A tokenizer whose tokens are bytes: id = byte, and three special ids.

    A conversation is BOS, then for each message its role, a colon, its content and TURN. A conversation
    with a message of the content `refuse me` is refused, as templates do.

    Attributes:
      rendered: the last conversation to render, with its options.
    """

    rendered: dict[str, Any]

    has_template = True
    eos_ids = (EOS,)

    chat_template = "{{ messages }}"
    tool_template = chat_template
    template_options = frozenset({"style"})
    knows_tools = knows_calls = False

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        self.rendered = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "options": options,
        }
        ids = [BOS]
        for message in messages:
            if message["content"] == "refuse me":
                raise DistaffError("Conversation roles must alternate")
            ids += f"{message['role']}:{message['content']}".encode()
            ids.append(TURN)
        return ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    start_id = BOS

    @property
    def special_tokens(self) -> dict[str, str]:
        return {"bos_token": self.token_name(BOS), "eos_token": self.token_name(EOS)}

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def special_id(self, name: str) -> int | None:
        return next((token for token in (BOS, EOS, TURN) if self.token_name(token) == name), None)

    def detokenizer(self, prompt: Sequence[int] = ()) -> "FakeDetokenizer":
        return FakeDetokenizer()

    def token_bytes(self, token: int) -> bytes | None:
        return bytes([token]) if token < 256 else None

    def token_name(self, token: int) -> str:
        return f"<|{token}|>"


class FakeDetokenizer:
    """Bytes -> characters, as soon as one is complete; special ids have no text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeEngine:
    """Returns the tokens of `reply` one by one, and records its requests.

    Attributes:
      reply: the ids to return, or a function of the request; the end token follows.
      delay: seconds before each token. gate: while cleared, it holds back every token.
      capacity: the most sequences at once; a further one raises Overloaded with `retry_after` seconds.
      fail_after: the engine is lost, for all requests, before this many tokens of a sequence.
      error_after: only the sequence fails, likewise. error_param: the parameter that the error names.
      requests, aborted: all submitted requests; the ids of those aborted before their end.
      cached, written: the reported tokens of each prompt that were in the cache, and that were put there.
      miss: the reported reason for the others. waited: the reported wait of each.
      device_seconds: reported of each token that a sequence has; its page-seconds are twice as many.
      profiled: the calls of `profile`.
      queued, moved: the reported queue and numbers of moved sequences.
    """

    def __init__(self, reply: str | Sequence[int] | Script = "Hello, world!", *, context: int = 4096) -> None:
        self.reply: str | Sequence[int] | Script = reply
        self.delay = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.capacity = 64
        self.retry_after = 1.0
        self.fail_after: int | None = None
        self.error_after: int | None = None
        self.error_param: str | None = None
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self.profiled: list[bool] = []
        self.cached = self.written = 0
        self.miss: CacheMiss | None = None
        self.waited: float | None = None
        self.device_seconds = 0.0
        self.running: dict[str, FakeStream] = {}
        self.state: EngineState = "starting"
        self.info: EngineInfo | None = EngineInfo(
            context=context, vocabulary=VOCABULARY, slots=4, fingerprint="0123456789"
        )
        self.heartbeat_age = 0.0
        self.ready_in = 5.0
        self.queued = (0, 0)
        self.moved: dict[MoveCause, int] = {}

    @property
    def replicas(self) -> Sequence["FakeEngine"]:
        return (self,)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.running), total_pages=100, free_pages=100 - len(self.running))

    @property
    def takes(self) -> bool:
        return self.state == "ready"

    def submit(self, requests: Sequence[Request]) -> Sequence["FakeStream"]:
        if not self.takes:
            raise NotReady(f"the engine is {self.state}")
        if len(self.running) + len(requests) > self.capacity:
            raise Overloaded(f"{self.capacity} sequences are running", self.retry_after)
        streams = {request.id: FakeStream(self, request) for request in requests}
        self.running |= streams
        self.requests += requests  # last, because a test in another thread waits for it
        return list(streams.values())

    def profile(self, on: bool) -> None:
        self.profiled.append(on)

    async def start(self) -> None:
        self.state = "ready"

    async def drain(self, seconds: float) -> None:
        self.state = "draining"
        try:
            async with asyncio.timeout(seconds):
                while self.running:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self.lose(ShutDown("the server is shutting down"))

    async def stop(self) -> None:
        self.state = "stopped"

    def lose(self, failure: EngineFailed | None = None) -> None:
        """Fails every running sequence with `failure`; by default the engine is lost."""
        for stream in self.running.values():
            stream.failure = failure or stream.failure
            stream.lost.set()

    def tokens(self, request: Request) -> Sequence[int]:
        """The reply to a request."""
        reply = self.reply(request) if callable(self.reply) else self.reply
        return list(reply.encode()) if isinstance(reply, str) else reply


class FakeStream:
    """The events of one sequence; `delay` may differ from the engine's."""

    def __init__(self, engine: FakeEngine, request: Request) -> None:
        self.lost = asyncio.Event()
        self.failure = EngineFailed("the engine was lost")
        self.delay = engine.delay
        self._engine = engine
        self._request = request

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        for position, event in enumerate(self._events()):
            await self._wait()
            if self.lost.is_set() or position == self._engine.fail_after:
                self._end()
                raise self.failure
            if position == self._engine.error_after:
                reason, param = "a bad row", self._engine.error_param
                event = TokenEvent(request_id=self._request.id, finish="error", error=reason, param=param)
            if event.finish is not None:
                self._end()
            yield event
            if event.finish is not None:
                return

    def abort(self) -> None:
        if self._request.id in self._engine.running:
            self._engine.aborted.append(self._request.id)
        self._end()

    def _end(self) -> None:
        self._engine.running.pop(self._request.id, None)

    async def _wait(self) -> None:
        """Waits until the next token is due, or the engine is lost."""
        await asyncio.sleep(self.delay)
        gate = asyncio.ensure_future(self._engine.gate.wait())
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait((gate, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gate.cancel()
            lost.cancel()

    def _events(self) -> Iterator[TokenEvent]:
        """The events of the sequence, each created when it is sent."""
        each = self._engine.device_seconds
        for position, event in enumerate(self._reply()):
            if position < len(self._request.generated):
                continue
            used = each * (position + 1 - len(self._request.generated))
            event = replace(event, device_seconds=used, page_seconds=2 * used)
            yield event if position else self._with_prompt(event)

    def _reply(self) -> Iterator[TokenEvent]:
        """The events of the engine's reply, up to the limits of the request."""
        params, info = self._request.params, self._engine.info
        room = (info.context if info else 0) - len(self._request.prompt)
        limit = min(room, params.max_tokens or room)
        reply = list(self._engine.tokens(self._request))
        place = next((place for place, token in enumerate(reply) if token in params.stop_ids), len(reply))
        end, reply = next(iter(reply[place:]), EOS), reply[:place]
        endless = EOS not in params.stop_ids and end == EOS
        position = 0
        for position, token in enumerate(islice(cycle(reply) if endless else reply, limit), 1):
            yield self._event(token, finish="length" if position == limit else None)
        if position < limit:
            yield replace(self._event(end, finish="stop"), token=None, end=end)

    def _with_prompt(self, event: TokenEvent) -> TokenEvent:
        """The first event, with the requested results for the prompt."""
        prompt = self._request.prompt
        return replace(
            event,
            cached_tokens=self._engine.cached,
            written_tokens=self._engine.written,
            miss=self._engine.miss,
            waited=self._engine.waited,
            prompt_logprobs=self._scores(),
            pooled=(float(len(prompt)), float(prompt[-1])) if self._request.params.pool_prompt else None,
        )

    def _scores(self) -> tuple[TokenLogprobs, ...] | None:
        """The requested scores of the prompt, by the same rule as for the reply."""
        wanted = self._request.params.prompt_logprobs
        if wanted is None:
            return None
        return tuple(self._scored(token, wanted) for token in self._request.prompt[1:])

    def _event(self, token: int, finish: Literal["length", "stop"] | None = None) -> TokenEvent:
        return TokenEvent(
            request_id=self._request.id, token=token, logprobs=self._logprobs(token), finish=finish
        )

    def _logprobs(self, token: int) -> TokenLogprobs | None:
        wanted = self._request.params.logprobs
        return None if wanted is None else self._scored(token, wanted)

    @staticmethod
    def _scored(token: int, wanted: int) -> TokenLogprobs:
        """The token itself at -0.25, each of its successors in the vocabulary 1 lower."""
        top = tuple(((token + i) % VOCABULARY, -0.25 - i) for i in range(wanted))
        return TokenLogprobs(chosen=-0.25, top=top)
