"""POST /v1/chat/completions: the way of a request, from its body to the last byte of its answer.

Each station is a module of its own; this one only walks past them.
"""

from sanic import Blueprint, HTTPResponse

from ..chat import ChoiceText
from ..constraint import checked, constraint_of, parser_of
from ..context import ApiRequest
from ..exchange import answer
from ..intake import admit, read_call
from ..prompt import Prompt, encode_chat, sampling_params, sequences
from ..protocol.chat import ChatCall, parse_chat
from ..protocol.chat_reply import ChatReply
from ..protocol.heading import Heading, fresh_id
from ..protocol.sampling import check_token_ids
from ..stops import StopSearch
from ..text import SpecialsShown, TextModel
from ..tool_formats import ToolFormat

blueprint = Blueprint("chat")


@blueprint.post("/v1/chat/completions")
async def create_chat_completion(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream."""
    context = request.app.ctx
    call = await read_call(
        request, lambda body, s: parse_chat(body, most_choices=s.most_choices, strict=s.strict)
    )
    info, text = context.engine_info(), context.served.ready()
    check_token_ids(call.sampling, info.vocabulary)
    format = context.served.format
    grammar = await checked(constraint_of(call, text, format), context.off_loop)
    prompt = await encode_chat(text, call, info, context.off_loop)
    params = sampling_params(call.sampling, text, context.served.defaults, grammar)
    heading = Heading(
        id=fresh_id("chatcmpl-"), model=context.settings.model, fingerprint="fp_" + info.fingerprint
    )
    salt = request.key_id + call.sampling.cache_salt
    requests = sequences(heading.id, [prompt], call.sampling.n, params, salt)
    reply = ChatReply(
        heading,
        call.delivery,
        choices=call.sampling.n,
        logprobs=call.sampling.logprobs is not None,
        single=call.tools.single,
    )
    choices = [_choice(call, text, format, prompt, vouched=grammar is not None) for _ in requests]
    exchange = admit(request, requests, choices, reply, len(prompt), per_prompt=call.sampling.n)
    return await answer(request, exchange, stream=call.delivery.stream)


def _choice(
    call: ChatCall, text: TextModel, format: ToolFormat, prompt: Prompt, *, vouched: bool
) -> ChoiceText:
    """A choice that has said nothing yet."""
    sampling = call.sampling
    names = None if sampling.show_special else format.marks if call.tools.tools else ()
    return ChoiceText(
        text if names == () else SpecialsShown(text, names),
        prompt,
        StopSearch(sampling.stop, include=sampling.include_stop),
        logprobs=sampling.logprobs is not None,
        parser=parser_of(call, format, vouched=vouched),
        named=call.tools.named,
    )
