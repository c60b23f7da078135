"""POST /v1/chat/completions: the way of a request, from its body to the last byte of its answer.

Each station is a module of its own; this one only walks past them.
"""

from sanic import Blueprint, HTTPResponse

from ..context import ApiRequest
from ..exchange import answer
from ..intake import read_call
from ..protocol.chat import parse_chat
from ..protocol.chat_reply import ChatReply
from ..turn import take_turn

blueprint = Blueprint("chat")


@blueprint.post("/v1/chat/completions")
async def create_chat_completion(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream."""
    call = await read_call(
        request, lambda body, s: parse_chat(body, most_choices=s.most_choices, strict=s.strict)
    )
    turn = await take_turn(request, call, "chatcmpl-")
    reply = ChatReply(
        turn.heading,
        call.delivery,
        choices=call.sampling.n,
        logprobs=call.sampling.logprobs is not None,
        single=call.tools.single,
    )
    return await answer(request, turn.admit(request, reply), stream=call.delivery.stream)
