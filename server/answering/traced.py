"""What a call's span says: OpenTelemetry's GenAI attributes of its request and of its answer.

`tracing.py` keeps the spans. Names and numbers only: no prompt, no answer, no stop string, no key.
"""

from collections.abc import Sequence

from ...runtime.request import Request
from ..call_record import CallRecord
from ..errors import as_api_error
from ..protocol.usage import Usage
from .context import ApiRequest

_TEXT_COMPLETIONS = ("cmpl-", "gen-")
_EMBEDDINGS = "embd-"
_INT64 = range(-(2**63), 2**63)
"""What an attribute can hold; TGI's seeds may be larger."""
_PARAMETERS = ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")


def trace_call(request: ApiRequest, requests: Sequence[Request]) -> None:
    """Describes a call that is submitted; `requests`: its sequences."""
    if request.span is None:
        return
    model, params = request.app.ctx.settings.model, requests[0].params
    operation, id = _operation(requests[0].id), requests[0].id.rpartition("-")[0]
    given = {f"gen_ai.request.{name}": getattr(params, name) for name in _PARAMETERS}
    seed = params.seed  # None for embeddings, which a range would search for number by number
    if seed is not None and seed != request.identity.seed and seed in _INT64:
        given["gen_ai.request.seed"] = seed
    request.span.describe(
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "distaff",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": id,
            "gen_ai.request.choice.count": len(requests),
            "distaff.request.id": request.reference,
            "distaff.resumed": request.resumption is not None,
            **{name: value for name, value in given.items() if value is not None},
        },
        f"{operation} {model}",
    )


def trace_usage(request: ApiRequest, usage: Usage) -> None:
    """Describes what a call has used."""
    if request.span is not None:
        request.span.describe(
            {
                "gen_ai.usage.cache_read.input_tokens": usage.cached,
                "gen_ai.usage.cache_creation.input_tokens": usage.written,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning,
                "distaff.usage.device_seconds": usage.resources.device_seconds,
                "distaff.usage.page_seconds": usage.resources.page_seconds,
            }
        )


def trace_end(request: ApiRequest, record: CallRecord, error: BaseException | None) -> None:
    """Ends the span of a call whose record is closed; `error` ended it before its head was sent."""
    if request.span is None:
        return
    said = {
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": record.reasons,
    }
    if record.first_token_seconds is not None:
        said["gen_ai.response.time_to_first_chunk"] = record.first_token_seconds
    request.span.describe(said)
    request.span.add_phases(record.times)
    request.span.end(_status(error), request.ending)


def _status(error: BaseException | None) -> int | None:
    """None for a client that has left before the head."""
    if error is None:
        return 200
    return as_api_error(error).status if isinstance(error, Exception) else None


def _operation(id: str) -> str:
    if id.startswith(_EMBEDDINGS):
        return "embeddings"
    return "text_completion" if id.startswith(_TEXT_COMPLETIONS) else "chat"
