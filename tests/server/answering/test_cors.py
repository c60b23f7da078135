"""Web pages of other origins: what lets a browser ask and read for them, and when it is not said."""

import json
import re

import httpx
import pytest
from sanic import Sanic

from distaff.model.errors import ConfigError
from distaff.server.answering.cors import parse_origin
from distaff.server.app import create_app
from distaff.server.command.exposure import check_origins
from distaff.server.exit_codes import REFUSED_SETTING, Failed
from distaff.server.keys import Keys
from distaff.server.settings import ServerSettings
from distaff.server.testing import FakeEngine

from ..conftest import MODEL, Server

PAGE = "https://app.example.com"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def open_to_pages():
    server = Server(allow_origins=(PAGE, "http://localhost:3000"))
    server.reset()
    yield server
    server.close()


@pytest.fixture
def page(open_to_pages):
    """A client that says, as a browser does, which page asks."""
    with httpx.Client(base_url=open_to_pages.url, headers={"origin": PAGE}, timeout=20) as client:
        yield client


def preflight(client, path="/v1/chat/completions", **headers):
    wanted = "authorization,content-type,x-stainless-os"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    return client.options(path, headers=asked | headers)


def test_a_preflight_is_answered(page):
    reply = preflight(page)
    assert (reply.status_code, reply.content) == (204, b"")
    found = {name: value for name, value in reply.headers.items() if name.startswith("access-control")}
    assert found == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, HEAD, POST, DELETE, OPTIONS",
        "access-control-allow-headers": "authorization,content-type,x-stainless-os",
        "access-control-max-age": "600",
    }
    assert reply.headers["vary"].lower().startswith("origin")


def test_headers_that_are_none_are_not_repeated(page):
    for wanted in ("a b", "x,", "x" * 5000, "*"):
        reply = preflight(page, **{"access-control-request-headers": wanted})
        assert "access-control-allow-headers" not in reply.headers


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", BODY, 200),
        ("/v1/chat/completions", BODY | {"stream": True}, 200),
        ("/v1/chat/completions", BODY | {"n": 0}, 400),
        ("/v1/chat/completions", BODY | {"model": "other"}, 404),
        ("/generate", {"inputs": ""}, 422),
        ("/nowhere", {}, 404),
        ("/health", {}, 405),
    ],
)
def test_every_answer_can_be_read_by_the_page(page, path, body, status):
    """Errors and streams as well: what lacks the headers is a nameless failure in a browser."""
    reply = page.post(path, json=body)
    assert reply.status_code == status
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in reply.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in reply.headers
    assert reply.headers["vary"] == "Origin"


def test_a_refused_key_can_be_read_by_the_page(make_server):
    server = make_server(allow_origins=(PAGE,), keys=Keys(["a-key-that-is-long-enough"]))
    with httpx.Client(base_url=server.url, headers={"origin": PAGE}) as page:
        assert preflight(page).status_code == 204
        reply = page.post("/v1/chat/completions", json=BODY)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (401, PAGE)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", PAGE + ".evil.example", PAGE + ":8080", "null", ""]
)
def test_other_pages_are_granted_nothing(open_to_pages, origin):
    with httpx.Client(base_url=open_to_pages.url, headers={"origin": origin}) as client:
        for reply in (preflight(client), client.post("/v1/chat/completions", json=BODY)):
            assert not [name for name in reply.headers if name.startswith("access-control")]
            assert "Origin" in reply.headers["vary"]


def test_every_page_may_ask_where_the_operator_says_so(make_server):
    server = make_server(allow_origins=("*",))
    reply = httpx.get(server.url + "/v1/models", headers={"origin": "null"})
    assert reply.headers["access-control-allow-origin"] == "*"


def test_no_page_may_ask_by_default(http):
    for reply in (preflight(http, origin=PAGE), http.get("/v1/models", headers={"origin": PAGE})):
        assert not [name for name in reply.headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize("text", ["https://a.example", "HTTP://LOCALHOST:3000", "tauri://localhost", "*"])
def test_origins(text):
    assert parse_origin(text) == text.lower()


@pytest.mark.parametrize(
    "text", ["", "a.example", "https://a.example/", "https://*.a.example", "null", "https://"]
)
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(ConfigError, match="is not an origin"):
        parse_origin(text)


def test_any_origin_with_keys_must_be_said():
    keys = Keys(["a-key-that-is-long-enough"])
    with pytest.raises(Failed, match="--any-origin-with-keys") as refusal:
        check_origins(["*"], keys, False)
    assert refusal.value.code == REFUSED_SETTING
    check_origins(["*"], keys, True)
    check_origins(["*"], None, False)
    check_origins([PAGE], keys, False)


def routes() -> list[tuple[str, str]]:
    """Every method and path of the app."""
    Sanic.test_mode = True
    app = create_app(ServerSettings(model=MODEL), FakeEngine())
    found = {(min(route.methods - {"OPTIONS"}), "/" + route.path) for route in app.router.routes}
    return sorted((method, path.replace("<name:path>", MODEL)) for method, path in found if path != "/")


@pytest.mark.parametrize(("method", "path"), [*routes(), ("GET", "/nowhere")])
def test_a_slash_at_the_end_changes_nothing(http, method, path):
    plain, slashed = (http.request(method, path + end, json={}) for end in ("", "/"))
    assert slashed.status_code == plain.status_code
    if path != "/metrics":
        assert without_numbers(slashed, path) == without_numbers(plain, path)


def without_numbers(reply, path):
    """An answer's text without the request's id; the path itself may stand in it."""
    return re.sub(r"req_\w+", "req_", reply.text.replace(path + "/", path))


def test_a_slash_behind_what_needs_no_key(make_server):
    server = make_server(keys=Keys(["a-key-that-is-long-enough"]))
    for path in ("/health", "/ping", "/ready"):
        assert (
            httpx.get(server.url + path + "/").status_code == httpx.get(server.url + path).status_code == 200
        )
    for path in ("/v1/models/", "/health/x", "/health//"):
        assert httpx.get(server.url + path).status_code in (401, 404)
    assert (
        json.loads(httpx.get(server.url + "/v1/models/").content)["error"]["type"] == "invalid_request_error"
    )
