"""Routes for operators and their tools: health, readiness, metrics and profiles."""

from sanic import Blueprint, HTTPResponse

from ..answering.context import ApiRequest, AppContext
from ..encode import to_json
from ..errors import ApiError, Unavailable
from ..metrics import CONTENT_TYPE

LONGEST_SILENCE = 10.0
"""The longest time, in seconds, without a heartbeat from the engine while this server reports healthy."""

blueprint = Blueprint("operations")


@blueprint.route("/health", methods=["GET", "HEAD"])
async def health(request: ApiRequest) -> HTTPResponse:
    """200 from the start, before the model is loaded, unless the engine has stopped sending heartbeats; with
    --health-when-ready the same as `/ready`."""
    return _healthy(request.app.ctx)


@blueprint.route("/ping", methods=["GET", "HEAD"])
async def ping(request: ApiRequest) -> HTTPResponse:
    """The same as `/health`, under the name of TGI and SageMaker."""
    return _healthy(request.app.ctx)


def _healthy(context: AppContext) -> HTTPResponse:
    if context.settings.flags.health_when_ready:
        return _ready(context)
    if context.engine.heartbeat_age > LONGEST_SILENCE:
        raise Unavailable("The engine has not sent a heartbeat for some time.", retry_after=10)
    return HTTPResponse(to_json({"status": "ok"}), content_type="application/json")


@blueprint.route("/ready", methods=["GET", "HEAD"])
async def ready(request: ApiRequest) -> HTTPResponse:
    """200 only while completions are accepted; the message contains how many of the engines are ready."""
    return _ready(request.app.ctx)


def _ready(context: AppContext) -> HTTPResponse:
    state = "draining" if context.draining else context.engine.state
    if state == "ready" and context.served.text is None:
        state = "loading"
    replicas = context.engine.replicas
    ready = sum(engine.state == "ready" for engine in replicas) if state == "ready" else 0
    if not ready:
        raise Unavailable(
            f"Not ready: the engine is {state}; {ready} of {len(replicas)} replicas accept requests.",
            retry_after=5,
        )
    body = {"status": "ready", "ready": ready, "replicas": len(replicas)}
    return HTTPResponse(to_json(body), content_type="application/json")


@blueprint.post("/start_profile")
async def start_profile(request: ApiRequest) -> HTTPResponse:
    """Starts a profile of the engine and its device, which runs until `/stop_profile`."""
    return _profile(request, True)


@blueprint.post("/stop_profile")
async def stop_profile(request: ApiRequest) -> HTTPResponse:
    """Stops the profile and writes it."""
    return _profile(request, False)


def _profile(request: ApiRequest, on: bool) -> HTTPResponse:
    context = request.app.ctx
    if context.settings.flags.profile is None:
        raise ApiError(404, "Profiling is off: the server was started without --profile.")
    context.engine_info()
    context.engine.profile(on)
    return HTTPResponse(to_json({"profiling": on}), content_type="application/json")


@blueprint.route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: ApiRequest) -> HTTPResponse:
    """The metrics in Prometheus's text format."""
    context = request.app.ctx
    return HTTPResponse(context.metrics.render(), content_type=CONTENT_TYPE)
