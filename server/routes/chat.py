"""POST /v1/chat/completions: calls each step of a request in order, from its body to its answer.

Each step is implemented in its own module.
"""

from sanic import Blueprint, HTTPResponse

from ..answering.chat_request import prepare_chat
from ..answering.context import ApiRequest
from ..answering.read_request import read_call
from ..answering.respond import answer
from ..protocol.openai.chat import parse_chat
from ..protocol.openai.chat_reply import ChatReply

blueprint = Blueprint("chat")


@blueprint.post("/v1/chat/completions")
async def create_chat_completion(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream."""
    call = await read_call(
        request, lambda body, s: parse_chat(body, most_choices=s.most_choices, strict=s.flags.strict)
    )
    prepared = await prepare_chat(request, call, "chatcmpl-")
    reply = ChatReply(
        prepared.heading,
        call.delivery,
        choices=call.sampling.n,
        logprobs=call.sampling.logprobs is not None,
        single=call.tools.single,
    )
    return await answer(request, prepared.submit(request, reply), stream=call.delivery.stream)
