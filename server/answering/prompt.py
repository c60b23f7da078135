"""A checked call -> token ids that fit the context, and the sequences for the engine.

The text model renders and encodes, the engine samples; this module holds the checks in between, and the
defaults for parameters that a request leaves out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...model.errors import DistaffError
from ...runtime.request import EngineError, Request, SamplingParams
from ..engine_client import EngineInfo
from ..errors import CONTEXT_EXCEEDED, BadRequest, PromptTooLong
from ..protocol.fields import unknown
from ..protocol.messages import Message
from ..protocol.openai.chat import ChatCall, Rendering
from ..protocol.openai.completions import CompletionCall, RawPrompt
from ..protocol.sampling import ENGINE_PARAMETERS, Sampling
from ..protocol.token_ids import no_such_token
from ..protocol.tools import ToolUse
from ..text.text_model import SamplingDefaults, TextModel
from ..tool_formats import tools_as_messages
from .off_loop import ClientWork

NO_TEMPLATE = "This model has no chat template and cannot answer chat completions."

Prompt = tuple[int, ...]


async def encode_chat(
    text: TextModel, call: ChatCall, info: EngineInfo, off_loop: ClientWork, where: str, *, strict: bool
) -> Prompt:
    """Renders and encodes the conversation in the parameter `where`, off the event loop.

    The prompt leaves room for `min_tokens`, and on a strict server for `max_tokens`.

    Raises:
      BadRequest: no chat template, a conversation that the template refuses, or one longer than the context.
    """
    prompt = await render_chat(text, call, off_loop, where)
    check_room(prompt, call, info, where=where, strict=strict)
    return prompt


def check_room(prompt: Prompt, call: ChatCall, info: EngineInfo, *, where: str, strict: bool) -> None:
    """Raises BadRequest unless a chat's prompt leaves the room that `encode_chat` wants for its reply."""
    room = call.sampling.room if strict else call.sampling.min_tokens or None
    check_length(len(prompt), room, info, where=where)


async def render_chat(text: TextModel, call: ChatCall, off_loop: ClientWork, where: str) -> Prompt:
    """The ids of the conversation, however many they are.

    Raises:
      BadRequest: no chat template, or a conversation that the template refuses.
    """
    if not text.has_template:
        raise BadRequest(NO_TEMPLATE, where)
    return await off_loop.render(render, text, call.messages, call.tools, call.rendering, where)


async def encode_prompts(
    text: TextModel, call: CompletionCall, info: EngineInfo, off_loop: ClientWork
) -> list[Prompt]:
    """The ids of a completion's prompts; an empty one becomes the token that begins or ends a text.

    Raises:
      BadRequest: an id outside the vocabulary, or a prompt longer than the context.
    """
    return await encode_texts(
        text,
        call.prompts,
        info,
        off_loop,
        where="prompt",
        room=call.sampling.room,
        special=call.special,
    )


async def encode_texts(
    text: TextModel,
    raws: Sequence[RawPrompt],
    info: EngineInfo,
    off_loop: ClientWork,
    *,
    where: str,
    room: int | None,
    special: bool = True,
) -> list[Prompt]:
    """The ids of texts, each of which leaves `room` tokens in the context; prompts of ids are unchanged.

    Raises:
      BadRequest: as in `encode_prompts`, for the parameter `where`.
    """
    prompts = []
    for raw in raws:
        ids = await off_loop.run(len(raw), _known_ids, text, raw, special, info.vocabulary, where)
        prompts.append(ids or (text.start_id,))
        check_length(len(prompts[-1]), room, info, where=where)
    return prompts


def _known_ids(text: TextModel, raw: RawPrompt, special: bool, vocabulary: int, where: str) -> Prompt:
    """The ids of one text, all within the vocabulary. Raises BadRequest."""
    ids = text.encode(raw, add_special_tokens=special) if isinstance(raw, str) else raw
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise no_such_token(where, wrong, vocabulary)
    return tuple(ids)


def render(
    text: TextModel,
    messages: Sequence[Message],
    use: ToolUse,
    rendering: Rendering,
    where: str = "messages",
) -> Prompt:
    """The ids of a conversation, with its tools rendered by the template or as plain messages.

    Raises:
      BadRequest: an option that the template does not read, or messages that it refuses.
      Overloaded: rendering did not start in time.
    """
    for name in rendering.options:
        if name not in text.template_options:
            raise BadRequest(*unknown(f"chat_template_kwargs.{name}"))
    tools: list[dict[str, Any]] | None = [tool.to_dict() for tool in use.tools] or None
    if not (text.knows_tools if tools else text.knows_calls):
        messages, tools = tools_as_messages(messages, use.tools), None
    try:
        ids = text.encode_chat(
            messages,
            tools=tools,
            add_generation_prompt=rendering.add_generation_prompt,
            continue_final_message=rendering.continue_final_message,
            options=rendering.options,
        )
    except EngineError:
        raise
    except DistaffError as error:
        raise BadRequest(str(error), where) from None
    return tuple(ids)


def check_length(prompt: int, most: int | None, info: EngineInfo, *, where: str) -> None:
    """Raises BadRequest unless the prompt is short enough, and fits the context with `most` more tokens."""
    if most is not None and prompt + most > info.context:
        raise BadRequest(
            f"This model's maximum context length is {info.context} tokens. However, you requested "
            f"{prompt + most} tokens ({prompt} in the {where}, {most} in the completion). "
            f"Please reduce the length of the {where} or completion.",
            where,
            CONTEXT_EXCEEDED,
        )
    if prompt > info.longest_prompt:
        bound, limit = "model's maximum context", info.context
        if prompt < limit:
            bound, limit = "server's maximum prompt", info.longest_prompt
        raise PromptTooLong(
            f"This {bound} length is {limit} tokens. However, your {where} resulted in {prompt} tokens. "
            f"Please reduce the length of the {where}.",
            where,
            tokens=prompt,
            limit=limit,
        )


def sampling_params(
    sampling: Sampling, text: TextModel, defaults: SamplingDefaults, seed: int, grammar: str | None = None
) -> SamplingParams:
    """The parameters for the engine; all choices of a call share them, including the seed.

    Args:
      seed: for a request that gives none.
    """
    ends = () if sampling.ignore_eos else text.eos_ids
    return SamplingParams(
        max_tokens=sampling.max_tokens or None,
        seed=seed if sampling.seed is None else sampling.seed,
        allowed_ids=sampling.allowed_token_ids,
        grammar=grammar,
        logprobs=sampling.logprobs,
        stop_ids=tuple(sorted({*ends, *sampling.stop_token_ids})),
        **_unchanged(sampling, defaults),
    )


def limited(params: SamplingParams, most: int, prompt: int, info: EngineInfo) -> SamplingParams:
    """`params` with a limit of `most` tokens: fewer if the context is too short, more if `min_tokens` is."""
    room = info.context - prompt
    return replace(params, max_tokens=min(max(most, params.min_tokens), room))


def sequences(
    id: str, prompts: Sequence[Prompt], count: int, params: SamplingParams, cache_salt: str
) -> list[Request]:
    """One engine request for each of `count` choices of each prompt. They differ only by their number, and
    the first one of each prompt returns the prompt's scores, if they are requested."""
    others = replace(params, prompt_logprobs=None)
    return [
        Request(
            id=f"{id}-{choice}",
            prompt=prompt,
            params=others if choice % count else params,
            choice=choice,
            cache_salt=cache_salt,
        )
        for choice, prompt in enumerate(prompt for prompt in prompts for _ in range(count))
    ]


def stated(source: Sampling | SamplingDefaults) -> dict[str, Any]:
    """The parameters of the engine that have a value in a request, or a recommended one in a checkpoint."""
    values = {name: getattr(source, name, None) for name in ENGINE_PARAMETERS}
    return {name: value for name, value in values.items() if value is not None}


def _unchanged(sampling: Sampling, defaults: SamplingDefaults) -> dict[str, Any]:
    """The request's values, else the model's recommendations; the engine has defaults for the rest."""
    return stated(defaults) | stated(sampling)
