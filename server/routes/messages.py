"""POST /v1/messages and its count of tokens: Anthropic's protocol, for agents and clients that speak it.

Each step is implemented in its own module; errors get their shape from `answering/error_answer.py`.
"""

from sanic import Blueprint, HTTPResponse

from ..answering.chat_request import prepare_chat
from ..answering.context import ApiRequest
from ..answering.prompt import render_chat
from ..answering.read_request import note_left_out, read_call
from ..answering.reasoning import asking
from ..answering.respond import answer
from ..encode import to_json
from ..protocol.anthropic.message_reply import PING, MessageReply
from ..protocol.anthropic.messages import parse_count, parse_message

blueprint = Blueprint("messages")

_CALL_ID = ("toolu_", 24)


@blueprint.post("/v1/messages")
async def create_message(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream of named events."""
    call = await read_call(request, lambda body, s: parse_message(body, strict=s.flags.strict))
    left_out = note_left_out(request.app.ctx, call.tools)
    prepared = await prepare_chat(request, call, "msg_", call_id=_CALL_ID)
    reply = MessageReply(
        prepared.heading,
        prepared.choices[0],
        shortened=prepared.params.max_tokens != call.sampling.max_tokens,
        request_id=request.reference,
    )
    submitted = prepared.submit(request, reply)
    stream = call.delivery.stream
    return await answer(request, submitted, stream=stream, headers=left_out, keep_alive=PING)


@blueprint.post("/v1/messages/count_tokens")
async def count_tokens(request: ApiRequest) -> HTTPResponse:
    """The tokens of the prompt that the same message would have."""
    call = await read_call(request, lambda body, s: parse_count(body, strict=s.flags.strict))
    left_out = note_left_out(request.app.ctx, call.tools)
    text = request.app.ctx.served.ready()
    prompt = await render_chat(text, asking(call, text), request.off_loop, "messages")
    body = to_json({"input_tokens": len(prompt)})
    return HTTPResponse(body, headers=left_out, content_type="application/json")
