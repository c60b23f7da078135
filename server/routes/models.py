"""GET /v1/models: what is served here, under which names."""

from typing import Any
from urllib.parse import unquote

from sanic import Blueprint, HTTPResponse

from ..context import ApiRequest, AppContext
from ..protocol.encode import to_json

blueprint = Blueprint("models")


@blueprint.route("/v1/models", methods=["GET", "HEAD"])
async def list_models(request: ApiRequest) -> HTTPResponse:
    """The model, then its aliases."""
    context = request.app.ctx
    data = [_describe(context, name) for name in context.settings.names]
    return HTTPResponse(to_json({"object": "list", "data": data}), content_type="application/json")


@blueprint.route("/v1/models/<name:path>", methods=["GET", "HEAD"])
async def retrieve_model(request: ApiRequest, name: str) -> HTTPResponse:
    """One model; its id may contain slashes, escaped or not."""
    context = request.app.ctx
    name = unquote(name)
    context.check_model(name)
    return HTTPResponse(to_json(_describe(context, name)), content_type="application/json")


def _describe(context: AppContext, name: str) -> dict[str, Any]:
    info = context.engine.info
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "distaff",
        "root": context.settings.model,
        "max_model_len": info.context if info else None,
    }
