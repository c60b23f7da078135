"""What an engine refuses at once: requests that it could never serve. No JAX."""

from collections.abc import Iterable

from .request import InvalidRequest, Request


def check(request: Request, vocabulary: int, context: int) -> int:
    """The most tokens that the request may come to, prompt included.

    Args:
      vocabulary: V; ids are below it. context: the longest sequence, in tokens.

    Raises:
      InvalidRequest: an empty prompt, an id or a choice out of range, or more tokens than there is room for.
    """
    params, prompt = request.params, request.prompt
    if not prompt:
        raise InvalidRequest("the prompt is empty; expected at least one token", "prompt")
    wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} in the prompt; expected 0 to {vocabulary - 1}", "prompt")
    if not 0 <= request.choice < 2**31:
        raise InvalidRequest(f"choice is {request.choice}; expected 0 to {2**31 - 1}", "choice")
    _check_ids("logit_bias", [token for token, _ in params.logit_bias], vocabulary)
    _check_ids("allowed_ids", params.allowed_ids or (), vocabulary)
    limit = context if params.max_tokens is None else len(prompt) + params.max_tokens
    if limit > context or len(prompt) >= context:
        raise InvalidRequest(
            f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens}; "
            f"expected at most {context} together",
            "max_tokens" if len(prompt) < context else "prompt",
        )
    return limit


def _check_ids(name: str, ids: Iterable[int], vocabulary: int) -> None:
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} in {name}; expected 0 to {vocabulary - 1}", name)
