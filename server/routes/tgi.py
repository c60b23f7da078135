"""TGI's own routes: /generate, /generate_stream, their common root, /info. Errors have TGI's format, too.

Raw texts are continued, as by `/v1/completions`; there are no conversations here.
"""

import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from typing import Any

from sanic import Blueprint, HTTPResponse

from ...model.errors import DistaffError
from ..answering.constraint import checked
from ..answering.context import ApiRequest
from ..answering.prompt import Prompt, sampling_params, sequences
from ..answering.read_request import note_unknown, read_body, submit_call
from ..answering.respond import answer
from ..dispatch.admission import most_together
from ..encode import to_json
from ..engine_client import EngineInfo
from ..errors import BadRequest, ModelNotFound, as_api_error
from ..protocol.heading import fresh_id
from ..protocol.sampling import MOST_STOPS
from ..protocol.tgi.generate import DEFAULT_TOKENS, GenerateCall, parse_generate
from ..protocol.tgi.headers import early_headers
from ..protocol.tgi.reply import GenerateReply, error_body
from ..text.choice import ChoiceText
from ..text.stops import StopSearch
from ..text.text_model import TextModel
from ..versions import own_version

blueprint = Blueprint("tgi")

Handler = Callable[[ApiRequest], Coroutine[Any, Any, HTTPResponse | None]]


def in_tgis_words(handler: Handler) -> Handler:
    """Answers errors in TGI's format."""

    @wraps(handler)
    async def answered(request: ApiRequest) -> HTTPResponse | None:
        try:
            return await handler(request)
        except DistaffError as error:
            request.note_failure(error)
            ours = as_api_error(error)
            status, body = error_body(ours)
            return HTTPResponse(to_json(body), status, ours.headers, content_type="application/json")

    return answered


@blueprint.post("/generate")
@in_tgis_words
async def generate(request: ApiRequest) -> HTTPResponse | None:
    """One answer, as an object."""
    return await _generate(request, stream=False)


@blueprint.post("/generate_stream")
@in_tgis_words
async def generate_stream(request: ApiRequest) -> HTTPResponse | None:
    """One answer, with an event for each token."""
    return await _generate(request, stream=True)


@blueprint.post("/")
@in_tgis_words
async def compat_generate(request: ApiRequest) -> HTTPResponse | None:
    """Either of the two, by `stream`; an object is returned in a list."""
    return await _generate(request, stream=None)


@blueprint.route("/info", methods=["GET", "HEAD"])
@in_tgis_words
async def info(request: ApiRequest) -> HTTPResponse:
    """The served model and its limits, under TGI's keys."""
    context = request.app.ctx
    found = context.engine_info()
    body = {
        "model_id": context.settings.model,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": most_together(context.settings.flags.max_concurrent, context.engine),
        "max_best_of": context.settings.most_choices,
        "max_stop_sequences": MOST_STOPS,
        "max_input_tokens": found.longest_prompt,
        "max_total_tokens": found.context,
        "max_client_batch_size": 1,
        "router": "distaff",
        "version": own_version(),
        "sha": found.fingerprint,
    }
    return HTTPResponse(to_json(body), content_type="application/json")


async def _generate(request: ApiRequest, *, stream: bool | None) -> HTTPResponse | None:
    """Answers a call; with `stream` None the body decides, as for TGI's root."""
    context = request.app.ctx
    call = await read_body(
        request, lambda body, s: parse_generate(body, most_choices=s.most_choices, stream=stream)
    )
    note_unknown(context, call.unknown)
    if call.adapter and not context.adapter_of(call.adapter):
        raise ModelNotFound(call.adapter)
    request.adapter = call.adapter
    found, text = context.engine_info(), context.served.ready()
    grammar = await checked(call.constraint, request.off_loop)
    prompt = await request.off_loop.run(len(call.inputs), _encoded, text, call)
    params = replace(
        sampling_params(call.sampling, text, context.served.defaults, request.identity.seed, grammar),
        max_tokens=_most_tokens(call, len(prompt), found),
        prompt_logprobs=0 if call.prefill and found.scores else None,
    )
    requests = sequences(fresh_id("gen-"), [prompt], call.best_of, params, request.key_id)
    choices = [_choice(call, text, prompt) for _ in requests]
    seed = params.seed if params.temperature else None
    reply = GenerateReply(call, choices, prompt, seed, listed=stream is None)
    submitted = submit_call(request, requests, choices, reply, len(prompt), per_prompt=call.best_of)
    admitted = time.perf_counter()
    early = early_headers(found.platform, call.inputs)
    response = await answer(request, submitted, stream=call.stream, headers=early)
    if response is not None:
        response.headers.update(reply.late_headers(request.started, admitted, time.perf_counter()))
    return response


def _encoded(text: TextModel, call: GenerateCall) -> Prompt:
    """The prompt's ids, truncated from the left if requested."""
    ids = tuple(text.encode(call.inputs))
    return ids[-(call.truncate or len(ids)) :]


def _most_tokens(call: GenerateCall, prompt: int, info: EngineInfo) -> int:
    """The most tokens to generate; raises BadRequest if they do not fit."""
    wanted, context = call.sampling.max_tokens, info.context
    if prompt > info.longest_prompt:  # TGI's message says "less than", but it accepts this many
        raise BadRequest(f"`inputs` must have less than {info.longest_prompt} tokens. Given: {prompt}")
    if wanted is not None and prompt + wanted > context:
        raise BadRequest(
            f"`inputs` tokens + `max_new_tokens` must be <= {context}. Given: {prompt} `inputs` tokens and "
            f"{wanted} `max_new_tokens`"
        )
    return min(DEFAULT_TOKENS, context - prompt) if wanted is None else wanted


def _choice(call: GenerateCall, text: TextModel, prompt: Prompt) -> ChoiceText:
    stops = StopSearch(call.sampling.stop, include=True)
    return ChoiceText(text, prompt, stops, logprobs=True, constraint=call.constraint)
