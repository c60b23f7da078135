"""What `LLM` takes and returns, and how it becomes token ids and back. No engine, no device."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast

import numpy as np

from ..checkpoints import ChatTokenizer, GenerationDefaults
from .request import FinishReason, InvalidRequest, Request, SamplingParams, TokenEvent, TokenLogprobs

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
      finish: why it ended; `interrupted`: by Ctrl-C, before its end or before its begin.
      prompt_tokens: the number of the prompt's ids.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason | Literal["interrupted"]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely a continuation is after its prompt.

    Attributes:
      tokens: the continuation's ids.
      logprobs: the natural log-probability of each, given all tokens before it: f32 `[T]`.
      greedy: each of them is the most likely token.
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    greedy: bool

    @property
    def logprob(self) -> float:
        """Of the whole continuation."""
        return float(self.logprobs.sum(dtype=np.float64))


def score_of(tokens: Sequence[int], start: int, logprobs: np.ndarray, greedy: np.ndarray) -> Score:
    """The score of the tokens from `start` on, from those of all tokens but the first."""
    own = slice(start - 1, None)
    return Score(tokens=tuple(tokens[start:]), logprobs=logprobs[own], greedy=bool(greedy[own].all()))


class Texts:
    """Prompts to token ids and requests, and events to completions.

    Attributes:
      tokenizer: the model's. defaults: the model's end tokens and sampling.
    """

    def __init__(self, tokenizer: ChatTokenizer, defaults: GenerationDefaults) -> None:
        self.tokenizer, self.defaults = tokenizer, defaults
        self._ids = itertools.count()

    def encode(self, prompt: Prompt | Conversation) -> list[int]:
        """The token ids of a prompt, or of a conversation by the chat template."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.tokenizer.encode_chat(cast(list[Message], list(prompt)))
        return [operator.index(token) for token in cast(Sequence[int], prompt)]

    def encode_all(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        """The token ids of one prompt or of several."""
        several = cast(Sequence[Prompt], [prompts] if _is_one(prompts) else prompts)
        return [self.encode(prompt) for prompt in several]

    def encode_chats(self, conversations: Conversation | Sequence[Conversation]) -> list[list[int]]:
        """The token ids of one conversation or of several, by the chat template."""
        single = bool(conversations) and isinstance(conversations[0], Mapping)
        several = cast(Sequence[Conversation], [conversations] if single else conversations)
        return [self.encode(conversation) for conversation in several]

    def requests(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | None, adapter: str = ""
    ) -> list[Request]:
        """A request for each prompt, which ends at the model's end tokens too."""
        params = params or self._default_params()
        params = replace(params, stop_ids=(*params.stop_ids, *self.defaults.eos_ids))
        return [
            Request(id=str(next(self._ids)), prompt=tuple(ids), params=params, adapter=adapter)
            for ids in prompts
        ]

    def completion(self, request: Request, events: Sequence[TokenEvent]) -> Completion:
        """The completion of a request that has received these events, not necessarily all of them."""
        tokens = tuple(event.token for event in events if event.token is not None)
        detokenizer = self.tokenizer.detokenizer()
        text = "".join(map(detokenizer.push, tokens)) + detokenizer.flush()
        entries = (event.logprobs for event in events if event.end is None)
        return Completion(
            text=text,
            tokens=tokens,
            logprobs=tuple(entry for entry in entries if entry is not None),
            finish=(events[-1].finish if events else None) or "interrupted",
            prompt_tokens=len(request.prompt),
        )

    def joined(self, prompt: Prompt, continuation: Prompt) -> tuple[list[int], int]:
        """The tokens of a prompt with its continuation, and where the continuation begins.

        Raises InvalidRequest: one of the two has no tokens.
        """
        start = len(head := self.encode(prompt))
        if isinstance(prompt, str) and isinstance(continuation, str):
            stripped = prompt.rstrip()  # tokens often begin with a space, and rarely end with one
            start, tokens = len(self.encode(stripped)), self.encode(prompt + continuation)
        else:
            tokens = head + self.encode(continuation)
        if not 0 < start < len(tokens):
            reason = (
                f"{start} tokens of prompt and {len(tokens) - start} of continuation; expected some of each"
            )
            raise InvalidRequest(reason, "prompts")
        return tokens, start

    def _default_params(self) -> SamplingParams:
        recommended = asdict(self.defaults)
        del recommended["eos_ids"]
        return SamplingParams(**{name: value for name, value in recommended.items() if value is not None})


def _is_one(prompts: object) -> bool:
    """Whether these are one prompt, and not a sequence of several."""
    return isinstance(prompts, str) or (
        isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int)
    )
