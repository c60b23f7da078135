"""POST /invocations: one route for three protocols, as in TGI, for Amazon SageMaker, which calls no other.

The keys of a body decide which of the other routes answers.
"""

from typing import cast

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest
from ..answering.read_request import read_body
from .chat import create_chat_completion
from .completions import create_completion
from .tgi import Handler, compat_generate, in_tgis_words

blueprint = Blueprint("invocations")

_ANSWERED_BY = cast(  # Sanic's decorators return the handler, but are not typed so
    dict[str, Handler],
    {"inputs": compat_generate, "messages": create_chat_completion, "prompt": create_completion},
)
"""The handler for each key of a body; the first key that is found counts."""


@blueprint.post("/invocations")
@in_tgis_words
async def invocations(request: ApiRequest) -> HTTPResponse | None:
    """TGI's root, a chat completion or a completion. Errors always have TGI's format."""
    key = await read_body(
        request, lambda body, settings: next((k for k in _ANSWERED_BY if k in body), "inputs")
    )
    return await _ANSWERED_BY[key](request)
