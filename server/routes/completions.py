"""POST /v1/completions: continues raw texts, for clients of the older protocol."""

from dataclasses import dataclass, replace

from sanic import Blueprint, HTTPResponse

from ...runtime.request import Request, SamplingParams
from ..answering.chat_request import heading_of
from ..answering.constraint import checked
from ..answering.context import ApiRequest
from ..answering.prompt import Prompt, encode_prompts, limited, sampling_params, sequences
from ..answering.read_request import read_call, submit_call
from ..answering.respond import answer
from ..encode import to_json
from ..engine_client import EngineInfo
from ..errors import BadRequest
from ..protocol.heading import Heading
from ..protocol.openai.completion_reply import CompletionReply, EchoedPrompt
from ..protocol.openai.completions import DEFAULT_TOKENS, CompletionCall, parse_completion
from ..protocol.openai.rendered import rendered
from ..protocol.sampling import check_token_ids
from ..text.choice import ChoiceText
from ..text.stops import StopSearch
from ..text.text_model import ServedModel, SpecialsShown, TextModel

blueprint = Blueprint("completions")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A completion that is ready to be submitted."""

    call: CompletionCall
    heading: Heading
    prompts: list[Prompt]
    requests: list[Request]


@blueprint.post("/v1/completions")
async def create_completion(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream."""
    prepared = await _prepare(request)
    call, prompts, requests = prepared.call, prepared.prompts, prepared.requests
    text = request.app.ctx.served.ready()
    choices = [_choice(call, text, each.prompt) for each in requests]
    reply = CompletionReply(
        prepared.heading,
        call.delivery,
        choices,
        per_prompt=call.best_of,
        answered=call.sampling.n,
        echoed=[_echoed(text, raw, ids) for raw, ids in zip(call.prompts, prompts, strict=True)]
        if call.echo
        else [],
        logprobs=call.sampling.logprobs,
    )
    tokens, count = sum(map(len, prompts)), call.best_of
    submitted = submit_call(
        request,
        requests,
        choices,
        reply,
        tokens,
        per_prompt=count,
        hints=call.hints,
        priority=call.priority,
    )
    return await answer(request, submitted, stream=call.delivery.stream)


@blueprint.post("/v1/completions/render")
async def render_completion(request: ApiRequest) -> HTTPResponse:
    """vLLM's route for routers: each prompt and the parameters that the same request would have."""
    prepared = await _prepare(request)
    call = prepared.call
    firsts = prepared.requests[:: call.best_of]
    body = [
        rendered(prepared.heading, each.prompt, each.params, call.sampling, stream=call.delivery.stream)
        for each in firsts
    ]
    return HTTPResponse(to_json(body), content_type="application/json")


async def _prepare(request: ApiRequest) -> _Prepared:
    """The sequences of the completion in the body. Raises BadRequest, ModelNotFound, NotReady."""
    context = request.app.ctx
    call = await read_call(
        request, lambda body, s: parse_completion(body, most_choices=s.most_choices, strict=s.flags.strict)
    )
    info, text = context.engine_info(), context.served.ready()
    _check_possible(call, info)
    grammar = await checked(call.constraint, request.off_loop)
    prompts = await encode_prompts(text, call, info, request.off_loop)
    heading = heading_of(context, info, "cmpl-", call.model, request.identity)
    salt = request.key_id + call.sampling.cache_salt
    params = _params(call, context.served, request.identity.seed, grammar)
    silent = context.settings.flags.default_max_tokens or DEFAULT_TOKENS
    requests = _requests(call, heading.id, prompts, params, salt, info, silent)
    return _Prepared(call, heading, prompts, requests)


def _check_possible(call: CompletionCall, info: EngineInfo) -> None:
    check_token_ids(call.sampling, info.vocabulary)
    if call.scores_prompt and not info.scores:
        message = "This deterministic server does not score prompts: 'echo' excludes 'logprobs'."
        raise BadRequest(message, "echo", "unsupported_value")


def _params(call: CompletionCall, served: ServedModel, seed: int, grammar: str | None) -> SamplingParams:
    sampling, ranked = call.sampling, call.best_of > call.sampling.n
    return replace(
        sampling_params(sampling, served.ready(), served.defaults, seed, grammar),
        logprobs=0 if ranked and sampling.logprobs is None else sampling.logprobs,
        prompt_logprobs=sampling.logprobs if call.scores_prompt else None,
    )


def _requests(
    call: CompletionCall,
    id: str,
    prompts: list[Prompt],
    params: SamplingParams,
    salt: str,
    info: EngineInfo,
    silent: int,
) -> list[Request]:
    """The sequences; a request without a limit gets `silent` tokens, or as many as there is room for."""
    requests = sequences(id, prompts, call.best_of, params, salt)
    if params.max_tokens is not None:
        return requests
    most = 1 if call.sampling.max_tokens == 0 else silent
    return [replace(each, params=limited(each.params, most, len(each.prompt), info)) for each in requests]


def _choice(call: CompletionCall, text: TextModel, prompt: Prompt) -> ChoiceText:
    sampling = call.sampling
    return ChoiceText(
        SpecialsShown(text) if sampling.show_special else text,
        prompt,
        StopSearch(sampling.stop, include=sampling.include_stop),
        logprobs=sampling.logprobs is not None or call.best_of > sampling.n,
        mute=sampling.max_tokens == 0,
        constraint=call.constraint,
    )


def _echoed(text: TextModel, raw: str | tuple[int, ...], ids: Prompt) -> EchoedPrompt:
    return EchoedPrompt(raw if isinstance(raw, str) else text.decode(ids), ids)
