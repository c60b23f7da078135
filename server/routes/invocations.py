"""POST /invocations: one door for three protocols, as TGI has it for Amazon SageMaker, which knows no other.

Does nothing of its own: the keys of a body say whose route answers.
"""

from typing import cast

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest
from ..answering.read_request import read_body
from .chat import create_chat_completion
from .completions import create_completion
from .tgi import Handler, compat_generate, in_tgis_words

blueprint = Blueprint("invocations")

_ANSWERED_BY = cast(  # Sanic's decorators return the handler; their types say otherwise
    dict[str, Handler],
    {"inputs": compat_generate, "messages": create_chat_completion, "prompt": create_completion},
)
"""By the key that a body has; the first that is found counts."""


@blueprint.post("/invocations")
@in_tgis_words
async def invocations(request: ApiRequest) -> HTTPResponse | None:
    """TGI's root, a chat completion or a completion. Errors are TGI's, whichever it is."""
    key = await read_body(
        request, lambda body, settings: next((k for k in _ANSWERED_BY if k in body), "inputs")
    )
    return await _ANSWERED_BY[key](request)
