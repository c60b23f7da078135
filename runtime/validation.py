"""Checks for requests that an engine can never serve. No JAX."""

import math
from collections.abc import Collection

from .request import InvalidRequest, Request, SamplingParams


def check(request: Request, vocabulary: int, context: int) -> int:
    """The maximum length of the request's sequence, prompt included.

    A request that passes can be packed: every number fits its place in a step's input buffer.

    Args:
      vocabulary: V; ids are below it. context: the longest sequence, in tokens.

    Raises:
      InvalidRequest: an empty prompt, an id or a choice out of range, more tokens than fit, no id that is
        allowed, or a sequence that its `generated` tokens have already ended.
    """
    params, prompt = request.params, request.prompt
    if not prompt:
        raise InvalidRequest("the prompt is empty; expected at least one token", "prompt")
    _check_ids("the prompt", prompt, "prompt", vocabulary)
    if not (isinstance(request.choice, int) and 0 <= request.choice < 2**31):
        raise InvalidRequest(f"choice is {request.choice}; expected 0 to {2**31 - 1}", "choice")
    check_params(params, vocabulary)
    limit = context if params.max_tokens is None else len(prompt) + params.max_tokens
    if limit > context or len(prompt) >= context:
        raise InvalidRequest(
            f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens}; "
            f"expected at most {context} together",
            "max_tokens" if len(prompt) < context else "prompt",
        )
    room = limit - len(prompt)
    if params.min_tokens > room:
        raise InvalidRequest(f"min_tokens is {params.min_tokens}; expected 0 to {room}", "min_tokens")
    if request.generated:
        _check_generated(request, vocabulary, room)
    return limit


def _check_generated(request: Request, vocabulary: int, room: int) -> None:
    """Raises InvalidRequest unless the sequence can continue after its `generated` tokens."""
    generated, params = request.generated, request.params
    _check_ids("generated", generated, "generated", vocabulary)
    if len(generated) >= room:
        raise InvalidRequest(
            f"{len(generated)} tokens are generated; expected at most {room - 1}", "generated"
        )
    ended = () if params.ignore_eos else set(generated).intersection(params.stop_ids)
    if ended:
        raise InvalidRequest(
            f"token id {min(ended)} in generated ends the sequence; expected none", "generated"
        )


def check_params(params: SamplingParams, vocabulary: int) -> None:
    """The part of `check` that is the same for every prompt.

    Raises:
      InvalidRequest: an id out of range, or no id that is allowed.
    """
    _check_ids("logit_bias", [token for token, _ in params.logit_bias], "logit_bias", vocabulary)
    _check_ids("allowed_ids", params.allowed_ids or (), "allowed_ids", vocabulary)
    _check_ids("stop_ids", params.stop_ids, "stop_ids", None)
    allowed = params.allowed_ids
    if allowed is not None and not allowed:
        raise InvalidRequest("allowed_ids is empty; expected at least one id", "allowed_ids")
    if not (params.min_tokens and params.stop_ids):
        return
    if set(params.stop_ids).issuperset(range(vocabulary) if allowed is None else allowed):
        raise InvalidRequest(
            f"min_tokens is {params.min_tokens}, though every token that may be generated ends the sequence; "
            "expected 0",
            "min_tokens",
        )


def _check_ids(name: str, ids: Collection[int], param: str, vocabulary: int | None) -> None:
    """Ids are integers below `vocabulary`; a model's own end ids can be above it (None)."""
    top = math.inf if vocabulary is None else vocabulary
    if set(map(type, ids)) <= {int} and 0 <= min(ids, default=0) <= max(ids, default=0) < top:
        return
    wrong = next(token for token in ids if not (type(token) is int and 0 <= token < top))
    bound = "at least 0" if vocabulary is None else f"0 to {vocabulary - 1}"
    raise InvalidRequest(f"token id {wrong!r} in {name}; expected {bound}", param)
