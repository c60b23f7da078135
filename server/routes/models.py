"""GET /v1/models and /v1/capabilities: the served model, its names, and the supported parameters.

Anthropic's clients, known by a header, get the models in its shape. Codex, known by its query, gets its own
list in addition. The list is there only while requests are accepted, because KServe, SkyServe and scripts
take its status 200 for readiness.
"""

from typing import Any
from urllib.parse import unquote

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest, AppContext
from ..answering.error_answer import speaks_anthropic
from ..answering.prompt import stated
from ..encode import to_json
from ..engine_client import EngineInfo
from ..protocol.anthropic.message_models import model_info, model_list
from ..protocol.openai.codex_models import codex_model
from ..protocol.openapi.meanings import ROUTES, describe
from ..protocol.sampling import defaults
from ..versions import own_version

blueprint = Blueprint("models")


@blueprint.route("/v1/models", methods=["GET", "HEAD"])
async def list_models(request: ApiRequest) -> HTTPResponse:
    """The model, then its aliases; 503 while no requests are accepted."""
    return _listed(request)


@blueprint.route("/v1/models/<name:path>", methods=["GET", "HEAD"])
async def retrieve_model(request: ApiRequest, name: str) -> HTTPResponse:
    """One model; its id may contain slashes, escaped or not. An empty id returns the list."""
    context = request.app.ctx
    name = unquote(name).removesuffix("/")
    if not name:
        return _listed(request)
    context.check_model(name)
    return HTTPResponse(
        to_json(_described(request, name, _accepting(context))), content_type="application/json"
    )


@blueprint.route("/server_info", methods=["GET", "HEAD"])
async def server_info(request: ApiRequest) -> HTTPResponse:
    """SGLang's route: the name under which its router lists the model."""
    body = {"served_model_name": request.app.ctx.settings.model, "version": own_version()}
    return HTTPResponse(to_json(body), content_type="application/json")


@blueprint.route("/v1/capabilities", methods=["GET", "HEAD"])
async def list_capabilities(request: ApiRequest) -> HTTPResponse:
    """How each parameter is supported, and the features of this model."""
    context = request.app.ctx
    info, reasoning = context.engine_info(), context.served.reasoning
    body = {
        "object": "capabilities",
        "model": context.settings.model,
        "max_model_len": info.context,
        "max_choices": context.settings.most_choices,
        "slots": info.slots,
        "chat": context.served.ready().has_template,
        "tool_format": context.served.format.name,
        "reasoning_format": reasoning and reasoning.name,
        "prompt_scores": info.scores,
        "defaults": {"max_tokens": context.settings.flags.default_max_tokens}
        | defaults(stated(context.served.defaults)),
        "routes": {f"POST {route}": describe(route) for route in ROUTES},
    }
    return HTTPResponse(to_json(body), content_type="application/json")


def _accepting(context: AppContext) -> EngineInfo:
    """The engine's properties. Raises NotReady while a completion would be refused for that reason."""
    context.served.ready()
    return context.engine_info()


def _listed(request: ApiRequest) -> HTTPResponse:
    context = request.app.ctx
    info = _accepting(context)
    data = [_described(request, name, info) for name in context.settings.names]
    listed = model_list(data) if speaks_anthropic(request) else {"object": "list", "data": data}
    if "client_version" in request.args:
        reasons = context.served.reasoning is not None
        listed["models"] = [
            codex_model(name, info.context, reasons=reasons) for name in context.settings.names
        ]
    return HTTPResponse(to_json(listed), content_type="application/json")


def _described(request: ApiRequest, name: str, info: EngineInfo) -> dict[str, Any]:
    context = request.app.ctx
    if speaks_anthropic(request):
        return model_info(name, context.created, info.context)
    adapter = context.adapter_of(name)
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "distaff",
        "root": adapter or context.settings.model,
        "parent": context.settings.model if adapter else None,
        "max_model_len": info.context,
    }
