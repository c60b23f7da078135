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
from ..answering.traced import trace_usage
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
Came = Callable[[float | None], None]
"""Is called with each vector's wait for its first step, in seconds."""


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
    charge = admit(request, asked, tokens)
    try:
        groups = _Groups(request, asked)
    except Exception:
        charge.cancel()
        raise
    record = open_record(request, asked, tokens)
    with charged(charge, groups.usage, record), accounted(request, record, lambda: [0]):
        try:
            pooled = await groups.pooled(record.record_output)
        finally:
            trace_usage(request, groups.usage())
        record.ended("stop")
    body = embeddings(call, context.answering_as(call.model), pooled, groups.usage())
    return HTTPResponse(to_json(body), content_type="application/json")


class _Groups:
    """The texts of one call, of which some at a time are in the engine. Only submitted ones count as used."""

    def __init__(self, request: ApiRequest, requests: list[Request]) -> None:
        """Submits the first texts. Raises NotReady, Overloaded: they are refused."""
        context = request.app.ctx
        together = min(_TOGETHER, most_together(context.settings.flags.max_concurrent, context.engine))
        self._request = request
        self._groups = [requests[first : first + together] for first in range(0, len(requests), together)]
        self._tokens, self._resources = 0, Resources()
        self._generation = self._submit(self._groups[0])

    def usage(self) -> Usage:
        """What submitted texts have used so far; of those in the engine only their tokens."""
        shown = USAGE_HEADER in self._request.headers
        return Usage(self._tokens, 0, cached=0, resources=self._resources, shown=shown)

    async def pooled(self, came: Came) -> list[Vector]:
        """The vectors of all texts, in order."""
        found = await self._read(self._groups[0], came)
        for group in self._groups[1:]:
            self._generation = self._submit(group)
            found += await self._read(group, came)
        return found

    def _submit(self, group: list[Request]) -> Generation:
        generation = Generation(self._request.app.ctx.engine, group, self._request.connection.cut_off)
        self._tokens += sum(len(each.prompt) for each in group)
        return generation

    async def _read(self, group: list[Request], came: Came) -> list[Vector]:
        """The vectors of the submitted texts; always aborts sequences that still run."""
        found: dict[int, Vector] = {}
        try:
            while len(found) < len(group):
                received = await self._generation.next(_SILENCE)
                if received is None:
                    raise EngineFailed("the engine does not respond")
                index, event = received
                if event.finish == "error":
                    raise RequestFailed(event.error or "the engine failed the request")
                if event.pooled is not None:
                    came(event.waited)
                    found[index] = event.pooled
            return [found[index] for index in range(len(group))]
        finally:
            self._resources += self._generation.resources
            self._generation.abort()
