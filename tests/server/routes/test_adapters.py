"""Adapters by name: which requests name one, and what answers and lists say of them."""

from collections.abc import Callable

import httpx
import openai
import pytest

from distaff.model.errors import ConfigError
from distaff.server.flags import ServeFlags
from distaff.server.settings import ServerSettings

from ..conftest import Server

MODEL = "org/fake-model"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def adapted(make_server: Callable[..., Server]) -> Server:
    return make_server(adapter=["pirate=/adapters/pirate", "robot=~/robot"], embeddings=True)


CALLS = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "completions": ("/v1/completions", {"prompt": "Hi"}),
    "responses": ("/v1/responses", {"input": "Hi"}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
    "embeddings": ("/v1/embeddings", {"input": "Hi"}),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_model_of_a_request_names_its_adapter(adapted: Server, call: str):
    """In every dialect; the answer has that name, and the model's own names mean no adapter."""
    route, body = CALLS[call]
    for asked, answered, adapter in (("robot", "robot", "robot"), (MODEL, MODEL, ""), ("tgi", MODEL, "")):
        reply = httpx.post(adapted.url + route, json={**body, "model": asked})
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == answered
        assert adapted.engine.requests[-1].adapter == adapter
    unknown = httpx.post(adapted.url + route, json={**body, "model": "sailor"})
    assert unknown.status_code == 404


@pytest.mark.parametrize("route", ["/generate", "/"])
def test_tgi_has_a_parameter_of_its_own(adapted: Server, route: str):
    """As text-generation-inference 2 has; its clients send null by default."""
    for asked, adapter in (("robot", "robot"), (None, ""), ("", "")):
        body = {"inputs": "Hi", "parameters": {"adapter_id": asked}}
        assert httpx.post(adapted.url + route, json=body).status_code == 200
        assert adapted.engine.requests[-1].adapter == adapter
    unknown = {"inputs": "Hi", "parameters": {"adapter_id": "sailor"}}
    assert httpx.post(adapted.url + route, json=unknown).status_code == 404


def test_a_stream_has_the_adapters_name(adapted: Server):
    """In every chunk."""
    with openai.OpenAI(base_url=f"{adapted.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(model="pirate", messages=MESSAGES, stream=True)
        assert {chunk.model for chunk in stream} == {"pirate"}
    assert adapted.engine.requests[-1].adapter == "pirate"


def test_adapters_are_listed_with_their_parent(adapted: Server):
    """As vLLM lists them, without the operator's paths."""
    models = {each["id"]: each for each in httpx.get(f"{adapted.url}/v1/models").json()["data"]}
    assert [*models] == [MODEL, "tgi", "pirate", "robot"]
    assert (models[MODEL]["parent"], models["tgi"]["parent"]) == (None, None)
    assert (models["pirate"]["parent"], models["pirate"]["root"]) == (MODEL, "pirate")
    assert httpx.get(f"{adapted.url}/v1/models/robot").json() == models["robot"]


def test_an_adapter_cannot_have_the_models_name():
    """Otherwise the model itself could not be asked for."""
    for name in ("tgi", "a/b", "other"):
        flags = ServeFlags(adapter=[f"{name}=/x"], alias=["other"])
        with pytest.raises(ConfigError, match=rf"adapter '{name}' has a name of the model; expected another"):
            ServerSettings(model="a/b", flags=flags)
