"""/v1/batches: files of requests that are answered while the server is idle; enabled by --batches."""

import asyncio
from typing import Any

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest
from ..answering.read_request import note_unknown, read_body
from ..batches.records import StoredBatch, new_id, now
from ..encode import to_json
from ..errors import BadRequest
from ..protocol.openai.batches import parse_batch
from .files import batches_of
from .paging import page

blueprint = Blueprint("batches")

_HOUR = 3600


@blueprint.post("/v1/batches")
async def create_batch(request: ApiRequest) -> HTTPResponse:
    """Stores a batch, which is then validated and begun."""
    batches, context = batches_of(request), request.app.ctx
    call = await read_body(request, lambda body, s: parse_batch(body, strict=s.flags.strict))
    note_unknown(context, call.unknown)
    if call.endpoint == "/v1/embeddings" and not context.settings.flags.embeddings:
        message = (
            "Invalid 'endpoint': embeddings are off, because the server was started without --embeddings."
        )
        raise BadRequest(message, "endpoint", "unsupported_value")
    source = batches.file(call.input_file_id, request.key_id)
    if source.purpose != "batch":
        message = (
            f"Invalid 'input_file_id': {source.id} has the purpose '{source.purpose}'. Expected 'batch'."
        )
        raise BadRequest(message, "input_file_id", "invalid_value")
    batches.check_space(source.size)
    batch = StoredBatch(
        id=new_id("batch_"),
        owner=request.key_id,
        model=context.settings.model,
        input_file_id=source.id,
        endpoint=call.endpoint,
        completion_window=call.completion_window,
        metadata=call.metadata,
        created_at=now(),
        expires_at=now() + call.hours * _HOUR,
    )
    await asyncio.shield(batches.runner.create(batch))  # a client that has gone does not leave half of it
    return _json(batch.to_json())


@blueprint.get("/v1/batches")
async def list_batches(request: ApiRequest) -> HTTPResponse:
    """The batches of the key, newest first."""
    return _json(page(request, batches_of(request).batches_of(request.key_id), most=100, usual=20))


@blueprint.get("/v1/batches/<id:str>")
async def retrieve_batch(request: ApiRequest, id: str) -> HTTPResponse:
    """One of them."""
    return _json(batches_of(request).batch(id, request.key_id).to_json())


@blueprint.post("/v1/batches/<id:str>/cancel")
async def cancel_batch(request: ApiRequest, id: str) -> HTTPResponse:
    """Ends it early; lines that have results keep them."""
    batches = batches_of(request)
    batch = batches.batch(id, request.key_id)
    if batch.ended or batch.status == "finalizing":
        raise BadRequest(f"Cannot cancel a batch with the status '{batch.status}'.", "id", "invalid_status")
    if batch.status != "cancelling":
        await batches.runner.cancel(batch)
    return _json(batch.to_json())


def _json(body: Any) -> HTTPResponse:
    return HTTPResponse(to_json(body), content_type="application/json")
