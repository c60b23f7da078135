"""/v1/files: the input and output files of batches; enabled by --batches."""

import asyncio
from typing import Any

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest
from ..answering.upload import received
from ..batches.service import Batches
from ..encode import to_json
from ..errors import ApiError, BadRequest
from .paging import one_of, page

blueprint = Blueprint("files")

_BLOCK = 2**20


def batches_of(request: ApiRequest) -> Batches:
    """The files and batches of this server. Raises ApiError, a 404, if it has none."""
    found = request.app.ctx.batches
    if found is None:
        raise ApiError(404, "Files and batches are off: the server was started without --batches.")
    return found


@blueprint.post("/v1/files", stream=True)
async def create_file(request: ApiRequest) -> HTTPResponse:
    """Stores an upload; its purpose must be `batch`."""
    batches = batches_of(request)
    async with received(request, batches) as (name, content):
        stored = await asyncio.to_thread(batches.store.add_file, content, request.key_id, name, "batch")
    return _json(stored.to_json())


@blueprint.get("/v1/files")
async def list_files(request: ApiRequest) -> HTTPResponse:
    """The files of the key, newest first."""
    found = batches_of(request).files_of(request.key_id)
    if (purpose := one_of(request, "purpose", ("batch", "batch_output"))) is not None:
        found = [file for file in found if file.purpose == purpose]
    if one_of(request, "order", ("asc", "desc")) == "asc":
        found.reverse()
    return _json(page(request, found, most=10_000, usual=10_000))


@blueprint.get("/v1/files/<id:str>")
async def retrieve_file(request: ApiRequest, id: str) -> HTTPResponse:
    """One of them."""
    return _json(batches_of(request).file(id, request.key_id).to_json())


@blueprint.get("/v1/files/<id:str>/content")
async def retrieve_content(request: ApiRequest, id: str) -> None:
    """Its bytes."""
    batches = batches_of(request)
    stored = batches.file(id, request.key_id)
    with open(batches.store.content_path(stored), "rb") as file:
        headers = {"content-length": str(stored.size)}
        response = HTTPResponse(headers=headers, content_type="application/octet-stream")
        await request.respond(response)
        while block := await asyncio.to_thread(file.read, _BLOCK):
            await response.send(block)
        await response.send(b"", end_stream=True)


@blueprint.delete("/v1/files/<id:str>")
async def delete_file(request: ApiRequest, id: str) -> HTTPResponse:
    """Removes it, unless it is the input of a batch that has not ended."""
    batches = batches_of(request)
    stored = batches.file(id, request.key_id)
    if (user := batches.store.user_of(stored)) is not None:
        raise BadRequest(
            f"File {id} is the input of {user.id}, which is {user.status}. Cancel the batch first.",
            "id",
            "file_in_use",
        )
    await asyncio.to_thread(batches.store.remove_file, stored)
    return _json({"id": stored.id, "object": "file", "deleted": True})


def _json(body: Any) -> HTTPResponse:
    return HTTPResponse(to_json(body), content_type="application/json")
