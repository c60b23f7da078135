"""Responses that are stored and continued, and the count of a prompt's tokens; by the official client."""

import functools

import httpx
import openai
import pytest

from distaff.server.answering import response_store
from distaff.server.answering.response_store import ResponseStore, StoredResponse
from distaff.server.keys import Keys

from ..conftest import MODEL
from .response_events import events_of, post_response


def client_of(server, key="-"):
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20, _strict_response_validation=True
    )


@pytest.fixture
def storing(make_server):
    server = make_server(store_responses=3)
    server.reset()
    with client_of(server) as client:
        yield server, client.responses


def prompts(server):
    return [bytes(token for token in request.prompt if token < 256) for request in server.engine.requests]


def test_a_response_is_read_again_until_it_is_deleted(storing):
    _, responses = storing
    made = responses.create(model=MODEL, input="hi")
    assert made.store is True
    assert responses.retrieve(made.id) == made
    with responses.stream(model=MODEL, input="hi") as stream:
        streamed = stream.get_final_response()
    assert responses.retrieve(streamed.id).output_text == streamed.output_text
    responses.delete(made.id)
    for ask in (responses.retrieve, responses.delete):
        with pytest.raises(openai.NotFoundError, match=f"Response with id '{made.id}' not found."):
            ask(made.id)
    unstored = responses.create(model=MODEL, input="hi", store=False)
    assert unstored.store is False
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(unstored.id)


def test_a_response_is_continued(storing):
    """Its prompt is that of the whole conversation, but for the instructions, which are not kept."""
    server, responses = storing
    server.engine.reply = b'Yes.<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    tool = {"type": "function", "name": "f"}
    first = responses.create(model=MODEL, input="One?", tools=[tool], instructions="Be brief.")
    output = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "1"}
    server.engine.reply = b"So it is."
    second = responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=[tool])
    third = responses.create(model=MODEL, input="And?", previous_response_id=second.id, tools=[tool])
    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
    whole = [{"role": "user", "content": "One?"}, *(i.to_dict() for i in first.output), output]
    whole += [*(item.to_dict() for item in second.output), {"role": "user", "content": "And?"}]
    responses.create(model=MODEL, input=whole, tools=[tool])
    *_, continued, sent = prompts(server)
    assert continued == sent and b"Be brief." not in continued and b"So it is." in continued


def test_the_oldest_are_dropped_and_a_continued_one_does_not_need_them(storing):
    _, responses = storing
    last = first = responses.create(model=MODEL, input="1")
    for turn in range(4):
        last = responses.create(model=MODEL, input=str(turn), previous_response_id=last.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(model=MODEL, input="2", previous_response_id=first.id)
    assert refused.value.code == "previous_response_not_found"
    assert responses.create(model=MODEL, input="5", previous_response_id=last.id).output_text


def test_a_response_is_its_keys_own(make_server):
    first, second = "a" * 32, "b" * 32
    server = make_server(store_responses=3, keys=Keys([first, second]))
    server.reset()
    with client_of(server, first) as mine, client_of(server, second) as theirs:
        made = mine.responses.create(model=MODEL, input="hi")
        assert mine.responses.retrieve(made.id).id == made.id
        for ask in (theirs.responses.retrieve, theirs.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        with pytest.raises(openai.BadRequestError):
            theirs.responses.create(model=MODEL, input="hi", previous_response_id=made.id)


def test_a_response_that_fails_is_not_stored(storing):
    server, responses = storing
    server.engine.fail_after = 2
    with httpx.Client(base_url=server.url) as http:
        events = events_of(post_response(http, stream=True))
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(failed["id"])


def test_without_the_flag_nothing_is_stored(http, client):
    post = functools.partial(post_response, http)
    made = post(store=True).json()
    assert made["store"] is False
    assert http.get(f"/v1/responses/{made['id']}").status_code == 404
    error = post(previous_response_id=made["id"]).json()["error"]
    assert error["param"] == "previous_response_id" and "--store-responses" in error["message"]


def test_a_stored_response_is_not_streamed(storing):
    _, responses = storing
    made = responses.create(model=MODEL, input="hi")
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        responses.retrieve(made.id, stream=True)


def test_tokens_are_counted(client):
    """As many as the response's prompt has, with its tools and instructions."""
    body = dict(model=MODEL, input="hi", instructions="Be brief.", tools=[{"type": "function", "name": "f"}])
    counted = client.responses.input_tokens.count(**body)
    assert counted.input_tokens == client.responses.create(**body).usage.input_tokens


def test_the_store_is_bounded():
    store = ResponseStore(2)
    for id in "abc":
        store.keep(StoredResponse("", {"id": id}, ()))
    assert [id for id in "abc" if store.find(id, "")] == ["b", "c"]
    assert not store.drop("a", "") and store.drop("b", "") and not store.drop("c", "other")


def test_the_store_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(response_store, "MOST_BYTES", 10)
    store = ResponseStore(9)
    for id, size in (("a", 4), ("b", 5), ("c", 6)):
        store.keep(StoredResponse("", {"id": id}, (), size))
    assert [id for id in "abc" if store.find(id, "")] == ["c"]
    assert store.drop("c", "")
    for id in "de":
        store.keep(StoredResponse("", {"id": id}, (), 5))
    assert store.find("d", "") and store.find("e", "")
