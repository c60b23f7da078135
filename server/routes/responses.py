"""POST /v1/responses: OpenAI's newer API for replies, without stored state."""

from sanic import Blueprint, HTTPResponse

from ..answering.chat_request import prepare_chat
from ..answering.context import ApiRequest
from ..answering.read_request import note_left_out, read_call
from ..answering.respond import answer
from ..protocol.openai.response_reply import ResponseReply
from ..protocol.openai.responses import parse_response

blueprint = Blueprint("responses")


@blueprint.post("/v1/responses")
async def create_response(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream of named events."""
    call = await read_call(request, lambda body, s: parse_response(body, strict=s.flags.strict))
    left_out = note_left_out(request.app.ctx, call.chat.tools)
    prepared = await prepare_chat(request, call.chat, "resp_", "input")
    reply = ResponseReply(
        prepared.heading,
        call.echo,
        temperature=prepared.params.temperature,
        top_p=prepared.params.top_p,
        tools=call.chat.tools.tools,
        portable_reasoning=call.portable_reasoning,
    )
    submitted = prepared.submit(request, reply)
    return await answer(request, submitted, stream=call.chat.delivery.stream, headers=left_out)
