"""What is measured of one request: when it was due, sent, answered, and how many tokens it had.

Times are of `time.perf_counter()`, which is monotonic. The definitions are those of `vllm bench serve`, with
one exception: the first token is the first chunk with generated text. The chunk with the role alone, which
some servers send before they have computed anything, does not count.
"""

import itertools
from dataclasses import dataclass, field

import msgspec

from .events import Chunk


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has failed: a kind to count by, and what was found."""

    kind: str
    message: str


@dataclass(slots=True)
class Record:
    """The measurements of one request.

    Attributes:
      due: when it should have been sent. sent: when it was, before a connection was sought.
      wanted: the number of tokens that were requested.
      given: tokens of the prompt, as far as the client knows them; 0: it does not.
      times: of the chunks with generated text. ended: of the last chunk of the choice. text: its pieces.
      prompt_tokens, output_tokens, cached_tokens: from the answer's usage; None: it did not say.
      finished: the choice is complete. failure: why it failed.
    """

    due: float
    sent: float = 0.0
    wanted: int = 0
    given: int = 0
    times: list[float] = field(default_factory=list)
    ended: float = 0.0
    text: list[str] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finished: bool = False
    failure: Failure | None = None

    def take(self, chunk: Chunk, now: float) -> None:
        """Adds what a chunk says that arrived `now`."""
        for choice in chunk.choices:
            self.ended = now
            if choice.has_tokens:
                self.times.append(now)
                self.text.append(choice.written)
            self.finished = self.finished or choice.finish_reason is not None
        if usage := chunk.usage:
            self.prompt_tokens, self.output_tokens = usage.prompt_tokens, usage.completion_tokens
            details = usage.prompt_tokens_details
            self.cached_tokens = details.cached_tokens if details else None
        if chunk.error and not self.failure:
            self.failure = Failure("error in the stream", _message(chunk.error))

    @property
    def queued(self) -> float:
        """Seconds between when it was due and when it was sent."""
        return self.sent - self.due

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token; without any text, to the end."""
        return (self.times[0] if self.times else self.ended) - self.sent

    @property
    def latency(self) -> float:
        """Seconds from sending to the end of the choice."""
        return self.ended - self.sent

    @property
    def outputs(self) -> int:
        """The number of generated tokens: the server's count, or else the chunks with text."""
        return len(self.times) if self.output_tokens is None else self.output_tokens

    @property
    def inputs(self) -> int:
        """The number of tokens of the prompt: the server's count, or else the client's."""
        return self.given if self.prompt_tokens is None else self.prompt_tokens

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None for a single token."""
        return (self.latency - self.ttft) / (self.outputs - 1) if self.outputs > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks with text."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


def _message(error: object) -> str:
    found = error.get("message") if isinstance(error, dict) else None
    return found if isinstance(found, str) else msgspec.json.encode(error).decode()
