"""A checked call -> token ids that fit the context, and the sequences that the engine is asked for.

Rendering and encoding belong to the text model, sampling to the engine; here are the refusals in between,
and what a silent request gets.
"""

from collections.abc import Sequence
from typing import TypeVar

from ..model.errors import DistaffError
from ..runtime.request import EngineError, Request, SamplingParams, draw_seed
from .errors import BadRequest
from .protocol.chat import ChatCall
from .text import OffLoop, SamplingDefaults, TextModel

_T = TypeVar("_T")

NO_TEMPLATE = "This model has no chat template and cannot answer chat completions."


async def encode(text: TextModel, call: ChatCall, context: int, off_loop: OffLoop) -> tuple[int, ...]:
    """Renders and encodes the conversation, off the event loop where it is long.

    Raises:
      BadRequest: no chat template, a conversation that the template refuses, or more than the context holds.
    """
    if not text.has_template:
        raise BadRequest(NO_TEMPLATE, "messages")
    size = sum(len(message["content"]) for message in call.messages) + 16 * len(call.messages)
    try:
        prompt = tuple(await off_loop.run(size, text.encode_chat, call.messages))
    except EngineError:
        raise
    except DistaffError as error:
        raise BadRequest(str(error), "messages") from None
    check_length(len(prompt), call, context)
    return prompt


def check_length(prompt: int, call: ChatCall, context: int) -> None:
    """Raises BadRequest unless the prompt, and what may follow it, fit the context."""
    if call.max_tokens is not None and prompt + call.max_tokens > context:
        asked = (
            f"you requested {prompt + call.max_tokens} tokens ({prompt} in the messages, {call.max_tokens} "
            "in the completion). Please reduce the length of the messages or completion."
        )
    elif prompt >= context:
        asked = f"your messages resulted in {prompt} tokens. Please reduce the length of the messages."
    else:
        return
    raise BadRequest(
        f"This model's maximum context length is {context} tokens. However, {asked}",
        "messages",
        "context_length_exceeded",
    )


def sequences(
    id: str, prompt: Sequence[int], call: ChatCall, text: TextModel, defaults: SamplingDefaults
) -> list[Request]:
    """One engine request per choice, all with one seed: choices differ by their number alone."""
    params = SamplingParams(
        max_tokens=call.max_tokens,
        temperature=_first(call.temperature, defaults.temperature, 1.0),
        top_p=_first(call.top_p, defaults.top_p, 1.0),
        top_k=_first(call.top_k, defaults.top_k, 0),
        min_p=_first(call.min_p, defaults.min_p, 0.0),
        seed=draw_seed() if call.seed is None else call.seed,
        frequency_penalty=call.frequency_penalty,
        presence_penalty=call.presence_penalty,
        logprobs=call.logprobs,
        stop_ids=tuple(sorted(text.eos_ids)),
        ignore_eos=call.ignore_eos,
    )
    return [
        Request(
            id=f"{id}-{choice}",
            prompt=tuple(prompt),
            params=params,
            choice=choice,
            cache_salt=call.cache_salt,
        )
        for choice in range(call.n)
    ]


def _first(said: _T | None, recommended: _T | None, default: _T) -> _T:
    """What the request says, else what the model recommends, else OpenAI's default."""
    if said is not None:
        return said
    return default if recommended is None else recommended
