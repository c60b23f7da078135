"""POST /v1/responses: OpenAI's newer API for replies; and the routes of those that are stored.

Each step is implemented in its own module. Without `--store-responses` nothing is stored.
"""

from collections.abc import Sequence
from typing import Any

from sanic import Blueprint, HTTPResponse

from ..answering.chat_request import prepare_chat
from ..answering.context import ApiRequest
from ..answering.prompt import render_chat
from ..answering.read_request import note_left_out, read_call
from ..answering.reasoning import asking
from ..answering.respond import answer
from ..answering.response_store import StoredResponse
from ..encode import to_json
from ..errors import ApiError, BadRequest
from ..protocol.openai.response_reply import ResponseReply
from ..protocol.openai.responses import ResponseCall, parse_response
from ..protocol.sampling import check_token_ids
from ..settings import ServerSettings

blueprint = Blueprint("responses")


@blueprint.post("/v1/responses")
async def create_response(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream of named events."""
    call = await _read(request)
    left_out = note_left_out(request.app.ctx, call.chat.tools)
    prepared = await prepare_chat(request, call.chat, "resp_", "input")

    def keep(answered: dict[str, Any]) -> None:
        if call.stored:
            items = [*call.items, *answered["output"]]
            stored = StoredResponse(request.key_id, answered, items, size=len(request.body))
            request.app.ctx.responses.keep(stored)

    reply = ResponseReply(
        prepared.heading,
        call.echo,
        temperature=prepared.params.temperature,
        top_p=prepared.params.top_p,
        tools=call.chat.tools.tools,
        portable_reasoning=call.portable_reasoning,
        keep=keep,
    )
    submitted = prepared.submit(request, reply)
    return await answer(request, submitted, stream=call.chat.delivery.stream, headers=left_out)


@blueprint.post("/v1/responses/input_tokens")
async def count_input_tokens(request: ApiRequest) -> HTTPResponse:
    """The tokens of the prompt that the same request would have."""
    call = await _read(request)
    left_out = note_left_out(request.app.ctx, call.chat.tools)
    text = request.app.ctx.served.ready()
    check_token_ids(call.chat.sampling, request.app.ctx.engine_info().vocabulary)
    prompt = await render_chat(text, asking(call.chat, text), request.off_loop, "input")
    body = to_json({"object": "response.input_tokens", "input_tokens": len(prompt)})
    return HTTPResponse(body, headers=left_out, content_type="application/json")


@blueprint.route("/v1/responses/<id:str>", methods=["GET", "HEAD"])
async def retrieve_response(request: ApiRequest, id: str) -> HTTPResponse:
    """A stored response, whole."""
    if request.args.get("stream", "false").lower() != "false":
        raise BadRequest("A stored response cannot be streamed. Expected 'stream' to be false.", "stream")
    found = request.app.ctx.responses.find(id, request.key_id)
    if found is None:
        raise _not_found(id)
    return HTTPResponse(to_json(found.answer), content_type="application/json")


@blueprint.delete("/v1/responses/<id:str>")
async def delete_response(request: ApiRequest, id: str) -> HTTPResponse:
    """Drops a stored response; those that continue it keep their conversation."""
    if not request.app.ctx.responses.drop(id, request.key_id):
        raise _not_found(id)
    return HTTPResponse(
        to_json({"id": id, "object": "response", "deleted": True}), content_type="application/json"
    )


async def _read(request: ApiRequest) -> ResponseCall:
    """The call in the body. Raises BadRequest, ModelNotFound."""
    store, owner = request.app.ctx.responses, request.key_id

    def find(id: str) -> Sequence[dict[str, Any]] | None:
        found = store.find(id, owner)
        return found and found.items

    def parse(body: dict[str, Any], settings: ServerSettings) -> ResponseCall:
        return parse_response(body, strict=settings.flags.strict, find=find if store.most else None)

    return await read_call(request, parse)


def _not_found(id: str) -> ApiError:
    return ApiError(404, f"Response with id '{id[:64]}' not found.")
