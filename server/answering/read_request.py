"""Reads a request's body into a checked call, and submits the sequences of a call.

Every route that generates text uses both; in between, each route makes its prompts in its own way. A call
here is any object with a model's name and a list of unknown parameters.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ...runtime.request import Request
from ...runtime.validation import check_params
from ..call_record import CallRecord
from ..dispatch.admission import check_possible
from ..errors import UnsupportedEncoding
from ..protocol.body import parse_object
from ..protocol.cache_hints import NO_HINTS, SESSION_HEADERS, CacheHints
from ..protocol.tools import ToolUse
from ..settings import ServerSettings
from ..text.choice import ChoiceText
from ..text.generation import Generation
from .charge import USAGE_HEADER, admit
from .context import ApiRequest, AppContext
from .respond import Reply, SubmittedCall
from .resuming import continued, take_marks
from .traced import trace_call

log = logging.getLogger(__name__)

_MOST_NAMES_LOGGED = 256
_LONGEST_SESSION = 256
LEFT_OUT_HEADER = "x-distaff-tools-left-out"


class Call(Protocol):
    """A checked request."""

    @property
    def model(self) -> str: ...

    @property
    def unknown(self) -> tuple[str, ...]: ...


_Read = TypeVar("_Read")
CallT = TypeVar("CallT", bound=Call)
Parse = Callable[[dict[str, Any], ServerSettings], _Read]


async def read_body(request: ApiRequest, parse: Parse[_Read]) -> _Read:
    """The parsed body of a request; a long one is parsed off the event loop.

    Raises:
      BadRequest: the first error found. UnsupportedEncoding: it is compressed, or declared so.
    """
    request.watch_for_disconnect()
    await take_marks(request)
    for encoding in request.headers.getall("content-encoding", []):
        if encoding.strip().lower() not in ("", "identity"):
            raise UnsupportedEncoding(encoding)
    context = request.app.ctx
    content_type = request.headers.getone("content-type", None)

    def read(body: bytes) -> _Read:
        return parse(parse_object(body, content_type), context.settings)

    return await request.off_loop.run(len(request.body), read, request.body)


async def read_call(request: ApiRequest, parse: Parse[CallT]) -> CallT:
    """The call in a request's body, for a model that is served here.

    Raises:
      BadRequest: the first error found. ModelNotFound: another model.
    """
    context = request.app.ctx
    call = await read_body(request, parse)
    note_unknown(context, call.unknown)
    context.check_model(call.model)
    request.adapter = context.adapter_of(call.model)
    return call


def submit_call(
    request: ApiRequest,
    requests: Sequence[Request],
    choices: Sequence[ChoiceText],
    reply: Reply,
    prompt_tokens: int,
    *,
    per_prompt: int,
    hints: CacheHints = NO_HINTS,
    priority: int | None = None,
) -> SubmittedCall:
    """Submits all sequences of a call to the engine, or none; each prompt has `per_prompt` of them.

    Args:
      hints: of the conversation; a header may name it, too.
      priority: the one that the request asks for; None for the key's.

    Raises:
      InvalidRequest: the engine would refuse their parameters, or they are more than the queue can hold.
      RateLimited: the key has no quota left. NotReady, Overloaded: the engine accepts none now.
    """
    context = request.app.ctx
    check_params(requests[0].params, context.engine_info().vocabulary)
    param = "prompt" if len(requests) > per_prompt else "n"
    check_possible(requests, context.settings.flags.max_concurrent, context.engine, param)
    hints = hints.or_session(_session_of(request))
    session = f"{request.client} {hints.session}" if hints.session else ""
    keep = 0.0 if request.background else hints.keep_seconds
    requests = [
        replace(each, session=session, keep_seconds=keep) for each in ranked(request, requests, priority)
    ]
    charge = admit(request, requests, prompt_tokens)
    try:
        generation = charge.generation = _generation(request, requests)
    except Exception:
        charge.cancel()
        raise
    record, shown = open_record(request, requests, prompt_tokens), USAGE_HEADER in request.headers
    return SubmittedCall(prompt_tokens, per_prompt, generation, choices, reply, record, charge, shown)


def ranked(request: ApiRequest, requests: Sequence[Request], priority: int | None) -> list[Request]:
    """The sequences of a call, with their adapter and their place among those of others.

    Args:
      priority: the one that the request asks for; None for the key's.
    """
    settings = request.key_settings
    request.priority = settings.priority_of(priority) if request.key_id else priority or 0
    return [
        replace(
            each,
            client=request.client,
            background=request.background,
            priority=request.priority,
            weight=settings.weight,
            adapter=request.adapter,
        )
        for each in requests
    ]


def _generation(request: ApiRequest, requests: Sequence[Request]) -> Generation:
    """Submits the sequences."""
    context = request.app.ctx
    return Generation(
        context.engine,
        continued(request.resumption, requests, context.engine_info().fingerprint),
        request.connection.cut_off,
        resumption=request.resumption,
        watch=context.metrics.vllm.watch(background=request.background),
    )


def _session_of(request: ApiRequest) -> str:
    """The conversation that a header names; empty if there is none."""
    named = (request.headers.getone(name, "") for name in SESSION_HEADERS)
    return next((name[:_LONGEST_SESSION] for name in named if name), "")


def note_unknown(context: AppContext, names: tuple[str, ...]) -> None:
    """Counts unknown parameters, and logs each name once."""
    context.metrics.unknown.inc(len(names))
    for name in names:
        short = name[:64]
        if _is_new(context, short):
            log.warning("ignoring the unknown request parameter %r", short)


def note_left_out(context: AppContext, tools: ToolUse) -> dict[str, str]:
    """Logs each type of tools that a model is not told of, once; the header that names those of a request."""
    for kind in tools.left_out:
        short = kind[:64]
        if _is_new(context, short):
            log.warning("leaving out tools of the type %r, which this server cannot run", short)
    return {LEFT_OUT_HEADER: ", ".join(tools.left_out)} if tools.left_out else {}


def _is_new(context: AppContext, name: str) -> bool:
    """Whether a name is to be logged now: it has not been, and not too many others have."""
    if name in context.seen_unknown or len(context.seen_unknown) >= _MOST_NAMES_LOGGED:
        return False
    context.seen_unknown.add(name)
    return True


def open_record(request: ApiRequest, requests: Sequence[Request], prompt_tokens: int) -> CallRecord:
    """The record of a call whose sequences are submitted now."""
    context = request.app.ctx
    request.recorded = True
    trace_call(request, requests)
    return CallRecord(
        context.metrics,
        names=_names(request),
        model=context.settings.model,
        started=request.started,
        prompt_tokens=prompt_tokens,
        timed=not request.background and request.resumption is None,
    )


def _names(request: ApiRequest) -> dict[str, str]:
    """What identifies the call in a log: our id, its key's, its trace's, and the client's if safe."""
    theirs = request.headers.getone("x-client-request-id", "")
    safe = 0 < len(theirs) <= 64 and theirs.isascii() and theirs.replace("-", "").replace("_", "").isalnum()
    names = {
        "request": request.reference,
        "key": request.key_id,
        "client": theirs if safe else "",
        "trace_id": request.trace_id,
    }
    return {name: value for name, value in names.items() if value}
