"""`AsyncLLM`: an `LLM` for code in an event loop, such as a notebook's cells. It never blocks the loop.

Events of the engine go to the loop that waits for them. What takes long without the engine runs in threads.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import numpy as np

from .edits import Edit
from .engine import Engine
from .generation import InFlight
from .llm import LLM
from .request import Request, SamplingParams, TokenEvent
from .texts import Completion, Conversation, Prompt, Score


class _Mailbox:
    """Receives events on the engine's thread, and gives them to a task of the loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[TokenEvent] = asyncio.Queue()

    def put(self, item: TokenEvent) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> TokenEvent:
        return await self._queue.get()


class AsyncLLM:
    """The methods of an `LLM` as coroutines; arguments, results and errors are the same.

    A task that is cancelled aborts its requests. Calls of several tasks are computed together.

    Attributes:
      llm: the model, which can be used directly as well. `close` it at the end.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        edit: Mapping[int, Edit] | None = None,
        adapter: str = "",
    ) -> list[Completion]:
        """See `LLM.generate`; shows no progress."""
        ids = await asyncio.to_thread(self.llm.texts.encode_all, prompts)
        return await self._run(ids, params, edit, adapter)

    async def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        edit: Mapping[int, Edit] | None = None,
        adapter: str = "",
    ) -> list[Completion]:
        """See `LLM.chat`; shows no progress."""
        ids = await asyncio.to_thread(self.llm.texts.encode_chats, conversations)
        return await self._run(ids, params, edit, adapter)

    async def stream(
        self, prompt: Prompt | Conversation, params: SamplingParams | None = None, *, adapter: str = ""
    ) -> AsyncGenerator[str]:
        """See `LLM.stream`."""
        (request,) = self.llm.texts.requests([self.llm.texts.encode(prompt)], params, adapter)
        detokenizer = self.llm.tokenizer.detokenizer()
        mailbox = _Mailbox()
        in_flight = InFlight(self.llm.engine, self.llm.engine.event_queues, [request], mailbox)
        try:
            while in_flight.submit():
                event = await mailbox.get()
                in_flight.add(event)
                if event.token is not None and (text := detokenizer.push(event.token)):
                    yield text
        finally:
            in_flight.abort()
        if rest := detokenizer.flush():
            yield rest

    async def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """See `LLM.forward`."""
        return await asyncio.to_thread(self.llm.forward, tokens)

    async def logprobs(self, prompt: Prompt) -> np.ndarray:
        """See `LLM.logprobs`."""
        return await asyncio.to_thread(self.llm.logprobs, prompt)

    async def score(self, prompts: Sequence[Prompt], continuations: Sequence[Prompt]) -> list[Score]:
        """See `LLM.score`."""
        return await asyncio.to_thread(self.llm.score, prompts, continuations)

    async def hidden(
        self,
        prompts: Prompt | Sequence[Prompt],
        layers: Sequence[int] = (-1,),
        *,
        edit: Mapping[int, Edit] | None = None,
    ) -> list[np.ndarray]:
        """See `LLM.hidden`."""
        return await asyncio.to_thread(self.llm.hidden, prompts, layers, edit=edit)

    async def _run(
        self,
        prompts: list[list[int]],
        params: SamplingParams | None,
        edit: Mapping[int, Edit] | None,
        adapter: str,
    ) -> list[Completion]:
        requests = self.llm.texts.requests(prompts, params, adapter)
        using = self.llm.engine_with(edit)
        engine = await asyncio.to_thread(using.__enter__)  # compiles the edits, if they are new
        try:
            in_flight = await self._finished(engine, requests)
        finally:
            await asyncio.to_thread(using.__exit__, None, None, None)
        return await asyncio.to_thread(self._completions, requests, in_flight)

    def _completions(self, requests: list[Request], in_flight: InFlight) -> list[Completion]:
        return [self.llm.texts.completion(request, in_flight.events[request.id]) for request in requests]

    @staticmethod
    async def _finished(engine: Engine, requests: list[Request]) -> InFlight:
        """Waits for all events of some requests."""
        engine.check(requests)
        mailbox = _Mailbox()
        in_flight = InFlight(engine, engine.event_queues, requests, mailbox)
        try:
            while in_flight.submit():
                in_flight.add(await mailbox.get())
        finally:
            in_flight.abort()
        return in_flight
