"""Chooses the shape of an error's answer: Anthropic's on its routes, OpenAI's elsewhere.

The shapes themselves are in `protocol`. An error may come from any layer, before a route is known, so the
head of the request decides. TGI's routes answer their errors themselves.
"""

from typing import Any

from ..errors import ApiError
from ..protocol.anthropic.message_errors import error_body
from .context import ApiRequest

VERSION_HEADER = "anthropic-version"
"""Every client of Anthropic's sends it."""

_MESSAGES, _MODELS = "/v1/messages", "/v1/models"


def speaks_anthropic(request: ApiRequest) -> bool:
    """Whether the answer has Anthropic's shape: for messages, and for models if its clients ask."""
    path = request.path
    if path == _MESSAGES or path.startswith(f"{_MESSAGES}/"):
        return True
    of_models = path == _MODELS or path.startswith(f"{_MODELS}/")
    return of_models and VERSION_HEADER in request.headers


def error_answer(request: ApiRequest, error: ApiError) -> tuple[int, dict[str, Any]]:
    """The status and the body of an error's answer."""
    if speaks_anthropic(request):
        return error_body(error, request.reference)
    return error.status, error.envelope()
