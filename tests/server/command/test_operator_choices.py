"""What an operator decides for all requests: names that are served, the limit of one that names none."""

import httpx
import pytest

from ..conftest import MODEL, Server

BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
}
DEFAULT = 5


@pytest.fixture(scope="module")
def chosen():
    """A server with --any-model, --default-max-tokens 5 and --embeddings."""
    server = Server(any_model=True, default_max_tokens=DEFAULT, embeddings=True)
    server.reset()
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield server, client
    server.close()


@pytest.mark.parametrize("route", BODIES)
def test_any_model_is_served_and_repeated(chosen, route):
    """As llama.cpp does; the model's own names are no exception."""
    _, client = chosen
    for name in ("gpt-4o", "a/b:c", MODEL, "tgi"):
        reply = client.post(route, json=BODIES[route] | {"model": name})
        assert (reply.status_code, reply.json()["model"]) == (200, name)
    reply = client.post(route, json=BODIES[route] | {"model": "x" * 257})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_any_model_is_found(chosen):
    _, client = chosen
    told = client.get("/v1/models/gpt-4o").json()
    assert (told["id"], told["root"]) == ("gpt-4o", MODEL)
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [MODEL, "tgi"]


@pytest.mark.parametrize("route", [route for route in BODIES if route != "/v1/embeddings"])
@pytest.mark.parametrize(
    ("limits", "expected"),
    [({}, DEFAULT), ({"min_tokens": 9}, 9), ({"limit": 7}, 7), ({"limit": 3}, 3)],
)
def test_a_request_without_a_limit_has_the_default(chosen, route, limits, expected):
    """One that names a limit has its own; `min_tokens` widens the default."""
    server, client = chosen
    name = "max_output_tokens" if route == "/v1/responses" else "max_tokens"
    limits = {name if key == "limit" else key: value for key, value in limits.items()}
    assert client.post(route, json=BODIES[route] | {"model": "m"} | limits).status_code == 200
    assert server.engine.requests[-1].params.max_tokens == expected


def test_the_default_gives_way_to_the_context(chosen):
    server, client = chosen
    prompt = [97] * (4096 - 2)
    for route, body in {
        "/v1/completions": {"prompt": prompt},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x" * (4096 - 2 - 1 - 5 - 1)}]},
    }.items():
        assert client.post(route, json=body | {"model": "m"}).status_code == 200
        assert server.engine.requests[-1].params.max_tokens == 2


def test_without_a_default_each_route_keeps_its_own(http, engine):
    expected = {"/v1/completions": 16, "/v1/chat/completions": None, "/v1/responses": None}
    for route, limit in expected.items():
        http.post(route, json=BODIES[route] | {"model": "tgi"})
        assert engine.requests[-1].params.max_tokens == limit
    http.post("/generate", json={"inputs": "hi"})
    assert engine.requests[-1].params.max_tokens == 100


def test_tgis_routes_keep_theirs(chosen):
    server, client = chosen
    client.post("/generate", json={"inputs": "hi"})
    assert server.engine.requests[-1].params.max_tokens == 100
