"""POST /v1/embeddings: the mean of a text's final hidden states; enabled by --embeddings."""

from collections.abc import Callable

from sanic import Blueprint, HTTPResponse
from sanic.exceptions import NotFound

from ...runtime.request import EngineFailed, Request, SamplingParams
from ..answering.charge import USAGE_HEADER, admit, charged
from ..answering.context import ApiRequest
from ..answering.prompt import encode_texts
from ..answering.read_request import open_record, ranked, read_call
from ..answering.respond import accounted
from ..dispatch.admission import most_together
from ..encode import to_json
from ..engine_client import RequestFailed
from ..errors import BadRequest
from ..protocol.heading import fresh_id
from ..protocol.openai.embeddings import embeddings, parse_embedding
from ..protocol.usage import Resources, Usage
from ..text.generation import Generation

blueprint = Blueprint("embeddings")

_TOGETHER = 16
"""The most texts of one request that are in the engine at the same time, to leave room for other clients."""
_SILENCE = 3600.0

Vector = tuple[float, ...]


@blueprint.post("/v1/embeddings")
async def create_embeddings(request: ApiRequest) -> HTTPResponse:
    """A vector for each input."""
    context = request.app.ctx
    if not context.settings.flags.embeddings:
        raise NotFound
    call = await read_call(request, lambda body, s: parse_embedding(body, strict=s.flags.strict))
    info, text = context.engine_info(), context.served.ready()
    if not info.scores:
        raise BadRequest(
            "This deterministic server does not support embeddings.", "model", "unsupported_value"
        )
    prompts = await encode_texts(text, call.inputs, info, request.off_loop, where="input", room=1)
    params = SamplingParams(max_tokens=1, temperature=0.0, pool_prompt=True)
    id = fresh_id("embd-")
    asked = [
        Request(id=f"{id}-{n}", prompt=prompt, params=params, cache_salt=request.key_id)
        for n, prompt in enumerate(prompts)
    ]
    asked, tokens = ranked(request, asked, call.priority), sum(map(len, prompts))
    charge, record, parts = (
        admit(request, asked, tokens),
        open_record(request, asked, tokens),
        list[Resources](),
    )

    def usage() -> Usage:
        used = sum(parts, Resources())
        return Usage(tokens, 0, cached=0, resources=used, shown=USAGE_HEADER in request.headers)

    with charged(charge, usage, record), accounted(request, record, lambda: [0]):
        pooled = await _all_pooled(request, asked, parts.append)
        record.ended("stop")
    body = embeddings(call, context.answering_as(call.model), pooled, usage())
    return HTTPResponse(to_json(body), content_type="application/json")


async def _all_pooled(
    request: ApiRequest, requests: list[Request], use: Callable[[Resources], None]
) -> list[Vector]:
    """The vectors of all texts, in groups; `use` is called with what each group has used."""
    pooled: list[Vector] = []
    context = request.app.ctx
    together = min(_TOGETHER, most_together(context.settings.flags.max_concurrent, context.engine))
    for first in range(0, len(requests), together):
        pooled += await _pooled(request, requests[first : first + together], use)
    return pooled


async def _pooled(
    request: ApiRequest, requests: list[Request], use: Callable[[Resources], None]
) -> list[Vector]:
    """The vectors of some texts, in order; always aborts sequences that still run."""
    found: dict[int, Vector] = {}
    generation = Generation(request.app.ctx.engine, requests, request.connection.cut_off)
    try:
        while len(found) < len(requests):
            received = await generation.next(_SILENCE)
            if received is None:
                raise EngineFailed("the engine does not respond")
            index, event = received
            if event.finish == "error":
                raise RequestFailed(event.error or "the engine failed the request")
            if event.pooled is not None:
                found[index] = event.pooled
        return [found[index] for index in range(len(requests))]
    finally:
        use(generation.resources)
        generation.abort()
