"""POST /v1/chat/completions and its rendering: calls each step in order, from the body to the answer.

Each step is implemented in its own module.
"""

from sanic import Blueprint, HTTPResponse

from ..answering.chat_request import prepare_chat
from ..answering.context import ApiRequest
from ..answering.read_request import read_call
from ..answering.respond import answer
from ..encode import to_json
from ..protocol.openai.chat import ChatCall, parse_chat
from ..protocol.openai.chat_reply import ChatReply
from ..protocol.openai.rendered import rendered

blueprint = Blueprint("chat")


@blueprint.post("/v1/chat/completions")
async def create_chat_completion(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream."""
    call = await _read(request)
    prepared = await prepare_chat(request, call, "chatcmpl-")
    reply = ChatReply(
        prepared.heading,
        call.delivery,
        choices=call.sampling.n,
        logprobs=call.sampling.logprobs is not None,
        single=call.tools.single,
    )
    return await answer(request, prepared.submit(request, reply), stream=call.delivery.stream)


@blueprint.post("/v1/chat/completions/render")
async def render_chat_completion(request: ApiRequest) -> HTTPResponse:
    """vLLM's route for routers: the prompt and the parameters that the same request would have."""
    call = await _read(request)
    prepared = await prepare_chat(request, call, "chatcmpl-")
    stream = call.delivery.stream
    body = rendered(prepared.heading, prepared.prompt, prepared.params, call.sampling, stream=stream)
    return HTTPResponse(to_json(body), content_type="application/json")


async def _read(request: ApiRequest) -> ChatCall:
    """The call in the body. Raises BadRequest, ModelNotFound."""
    return await read_call(
        request, lambda body, s: parse_chat(body, most_choices=s.most_choices, strict=s.flags.strict)
    )
