"""A checked chat call -> the sequences that answer it, and the choices that read them.

Shared by chat completions, responses and Anthropic's messages: everything except the shapes of bodies and
answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ...runtime.request import Request, SamplingParams
from ..engine_client import EngineInfo
from ..protocol.cache_hints import CacheHints
from ..protocol.heading import Heading, Identity, derived_id
from ..protocol.openai.chat import ChatCall
from ..protocol.sampling import check_token_ids
from ..protocol.structured import Constraint
from ..text.choice import CallIds, ChoiceText
from ..text.stops import StopSearch
from ..text.text_model import SpecialsShown, TextModel
from ..tool_formats import ToolFormat
from .constraint import checked, constraint_of, parser_of
from .context import ApiRequest, AppContext
from .prompt import Prompt, check_room, encode_chat, limited, sampling_params, sequences
from .read_request import submit_call
from .reasoning import ReplyBegins, asking, beginning_of
from .respond import Reply, SubmittedCall


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat request that is ready to be submitted.

    Attributes:
      prompt: the ids of the conversation. requests, choices: one of each for every choice of the answer.
    """

    heading: Heading
    prompt: Prompt
    params: SamplingParams
    requests: Sequence[Request]
    choices: Sequence[ChoiceText]
    hints: CacheHints
    priority: int | None

    def submit(self, request: ApiRequest, reply: Reply) -> SubmittedCall:
        """Submits the sequences to the engine. Raises NotReady, Overloaded."""
        count, tokens = len(self.choices), len(self.prompt)
        return submit_call(
            request,
            self.requests,
            self.choices,
            reply,
            tokens,
            per_prompt=count,
            hints=self.hints,
            priority=self.priority,
        )


async def prepare_chat(
    request: ApiRequest,
    call: ChatCall,
    prefix: str,
    where: str = "messages",
    call_id: tuple[str, int] | None = None,
) -> PreparedChat:
    """Renders the conversation and prepares its sequences and choices.

    Args:
      prefix: of the answer's id. where: the parameter that holds the conversation.
      call_id: the prefix of ids of tool calls, and how many letters or digits follow; None for the format's.

    Raises:
      NotReady: the engine accepts no requests. BadRequest: the request cannot be answered.
    """
    context = request.app.ctx
    flags, info, text = context.settings.flags, context.engine_info(), context.served.ready()
    check_token_ids(call.sampling, info.vocabulary)
    call, format = asking(call, text), context.served.format
    constraint = constraint_of(call, text, format)
    grammar = await checked(constraint, request.off_loop)
    prompt = await encode_chat(text, call, info, request.off_loop, where, strict=flags.strict)
    begins = beginning_of(call, prompt, text, context.served.reasoning)
    if begins:
        grammar = await request.off_loop.run(len(grammar or ""), begins.grammar, grammar, text)
    if begins and begins.added:
        prompt += begins.added
        check_room(prompt, call, info, where=where, strict=flags.strict)
    params = sampling_params(call.sampling, text, context.served.defaults, request.identity.seed, grammar)
    most = flags.default_max_tokens if params.max_tokens is None else params.max_tokens
    if most is not None:
        params = limited(params, most, len(prompt), info)
    heading = heading_of(context, info, prefix, call.model, request.identity)
    salt = request.key_id + call.sampling.cache_salt
    requests = sequences(heading.id, [prompt], call.sampling.n, params, salt)
    call_ids = partial(derived_id, *(call_id or format.id), heading.id)
    choices = [_choice(call, text, format, prompt, constraint, begins, call_ids) for _ in requests]
    return PreparedChat(heading, prompt, params, requests, choices, call.hints, call.priority)


def heading_of(context: AppContext, info: EngineInfo, prefix: str, asked: str, identity: Identity) -> Heading:
    """The constant fields of an answer; `asked`: the model's id in the request."""
    model = context.answering_as(asked)
    return Heading(
        id=prefix + identity.name,
        model=model,
        fingerprint="fp_" + info.fingerprint,
        created=identity.created,
    )


def _choice(
    call: ChatCall,
    text: TextModel,
    format: ToolFormat,
    prompt: Prompt,
    constraint: Constraint | None,
    begins: ReplyBegins | None,
    call_ids: CallIds,
) -> ChoiceText:
    """A choice without tokens."""
    sampling = call.sampling
    marks = (*(format.marks if call.tools.tools else ()), *(begins.format.marks if begins else ()))
    names = None if sampling.show_special else marks
    return ChoiceText(
        text if names == () else SpecialsShown(text, names),
        prompt,
        StopSearch(sampling.stop, include=sampling.include_stop),
        logprobs=sampling.logprobs is not None,
        reasoning=begins.splitter() if begins else None,
        show_reasoning=call.reasoning.shown,
        constraint=constraint,
        parser=parser_of(call, format, vouched=constraint is not None),
        named=call.tools.named,
        call_ids=call_ids,
    )
