"""/v1/files: the input and output files of batches; enabled by --batches.

An upload goes to the disk as it arrives, whatever its size. Content is the client's: it is read by
`server/batches/` when a batch uses it.
"""

import asyncio
import mmap
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from sanic import Blueprint, HTTPResponse
from sanic.exceptions import RequestTimeout

from ..answering.context import ApiRequest
from ..answering.read_request import note_unknown
from ..batches.service import Batches
from ..encode import to_json
from ..errors import ApiError, BadRequest
from ..protocol.fields import missing, unknown, unsupported, wrong_value
from ..protocol.multipart import Part, boundary_of, parts_of
from .paging import one_of, page

blueprint = Blueprint("files")

_FORM_BYTES = 64 * 1024
"""What a body may have beside the file."""
_SLOWEST = 64 * 1024
"""An upload must arrive with so many bytes a second on average, beyond the time for any body."""
_BLOCK = 2**20
_LONGEST_NAME = 255


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
    boundary = boundary_of(request.headers.getone("content-type", None))
    async with _received(request, batches) as body:
        part, content = await asyncio.to_thread(_taken, body, boundary, request)
        try:
            size = content.stat().st_size
            _check_size(size, batches)
            batches.check_space(size)
            name = _plain_name(part.filename or "")
            stored = await asyncio.to_thread(batches.store.add_file, content, request.key_id, name, "batch")
        finally:
            content.unlink(missing_ok=True)
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


@asynccontextmanager
async def _received(request: ApiRequest, batches: Batches) -> AsyncIterator[Path]:
    """The body in a temporary file. Raises ApiError, a 413 or 408: it is too large, or arrives too slowly."""
    stream = cast(Any, request.stream)
    most = batches.limits.most_file_bytes + _FORM_BYTES
    announced = stream.request_bytes or 0
    _check_size(announced - _FORM_BYTES, batches)
    batches.check_space(announced)
    path = batches.store.uploads / secrets.token_hex(16)
    try:
        with open(path, "wb") as file:
            async for data in _pieces(request):
                if file.tell() + len(data) > most:
                    raise _too_large(batches)
                await asyncio.to_thread(file.write, data)
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _pieces(request: ApiRequest) -> AsyncIterator[bytes]:
    """The pieces of a body, which may take longer the larger it is."""
    deadline = asyncio.get_running_loop().time() + request.app.ctx.settings.body_seconds
    pieces = aiter(cast(Any, request.stream))
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                data = await anext(pieces, None)
        except TimeoutError:
            raise RequestTimeout from None
        if data is None:
            return
        deadline += len(data) / _SLOWEST
        yield data


def _taken(body: Path, boundary: bytes, request: ApiRequest) -> tuple[Part, Path]:
    """The part with the file, and a file with its content alone. Raises BadRequest."""
    if not body.stat().st_size:
        raise missing("file")
    with open(body, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        part = _file_part(mapped, parts_of(mapped, boundary), request)
        content = body.with_name(body.name + ".content")
        try:
            with open(content, "wb") as target:
                _copy(file.fileno(), target.fileno(), part.start, part.end)
        except BaseException:
            content.unlink()
            raise
    return part, content


def _copy(source: int, target: int, start: int, end: int) -> None:
    """Copies a range of a file."""
    while start < end:
        start += os.sendfile(target, source, start, end - start)


def _file_part(body: mmap.mmap, parts: list[Part], request: ApiRequest) -> Part:
    """The part with the file; checks the fields beside it. Raises BadRequest."""
    named = {part.name: part for part in parts}
    strict = request.app.ctx.settings.flags.strict
    others = tuple(name for name in named if name not in ("file", "purpose"))
    for name in others:
        if name.startswith("expires_after"):
            raise unsupported("expires_after")
        if strict:
            raise BadRequest(*unknown(name))
    note_unknown(request.app.ctx, others)
    for name in ("purpose", "file"):
        if name not in named:
            raise missing(name)
    purpose = body[named["purpose"].start : named["purpose"].end].decode(errors="replace")
    if purpose != "batch":
        error = wrong_value("purpose", purpose, ("batch",))
        raise BadRequest(error.message, "purpose", error.code)
    if named["file"].filename is None:
        raise BadRequest(
            "Invalid 'file': expected a file with a name, but got a field.", "file", "invalid_type"
        )
    if named["file"].start == named["file"].end:
        raise BadRequest("Invalid 'file': the file is empty.", "file", "empty_file")
    return named["file"]


def _plain_name(name: str) -> str:
    """The last part of a client's path, without what is not printable; it is only shown."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(each for each in last if each.isprintable())[:_LONGEST_NAME] or "upload.jsonl"


def _check_size(size: int, batches: Batches) -> None:
    if size > batches.limits.most_file_bytes:
        raise _too_large(batches)


def _too_large(batches: Batches) -> ApiError:
    message = f"The file is too large. Expected at most {batches.limits.most_file_bytes} bytes."
    return ApiError(413, message, param="file", code="request_too_large")


def _json(body: Any) -> HTTPResponse:
    return HTTPResponse(to_json(body), content_type="application/json")
