"""Reasoning before the answer, over HTTP: apart from the content of chat completions, accepted, counted."""

import json

import pytest

from ..conftest import MODEL
from .thinking_text import CALL, NOW, REPLY, THOUGHT, ThinkingText


@pytest.fixture
def text(server):
    server.served.text = text = ThinkingText()
    yield text
    server.served.reasoning_format = "auto"


@pytest.fixture
def message(ask, engine, text):
    """The message of a whole answer; the reply is given in full."""

    def answered(reply=REPLY, **changes):
        engine.reply = reply
        body = ask(**({"max_tokens": len(reply.encode()) + 1} | changes)).json()
        return body["choices"][0]["message"]

    return answered


def folded(chunks):
    """What the deltas of a stream add up to."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return {
        name: "".join(delta.get(name) or "" for delta in deltas)
        for name in ("reasoning_content", "reasoning", "content")
    }


def test_reasoning_is_apart_from_the_content(message, ask, stream):
    found = message()
    assert found["content"] == "Four."
    assert found["reasoning_content"] == found["reasoning"] == "It is four, I think."
    usage = ask(max_tokens=200).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(THOUGHT.rstrip())
    chunks = stream(max_tokens=200)
    assert folded(chunks) == {name: found[name] for name in ("reasoning_content", "reasoning", "content")}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}


def test_the_template_may_have_opened_it(message, text):
    text.opening = "<think>\n"
    assert message(REPLY.removeprefix("<think>"))["reasoning_content"] == "It is four, I think."
    assert message()["reasoning_content"] == "It is four, I think."
    text.opening = "<think>\n\n</think>\n\n"
    assert message()["content"] == REPLY


def test_a_user_who_types_the_mark_opens_nothing(message):
    messages = [{"role": "user", "content": "What is <think>"}]
    assert message("A mark.", messages=messages)["content"] == "A mark."


def test_a_continued_message_may_be_in_its_reasoning(message):
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>It"}]
    found = message(" is four.</think>Four.", messages=messages, continue_final_message=True)
    assert (found["reasoning_content"], found["content"]) == ("is four.", "Four.")


def test_reasoning_that_is_cut_short_has_no_answer(ask, engine, text):
    engine.reply = REPLY
    body = ask(max_tokens=12, logprobs=True).json()
    [choice] = body["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"] == REPLY[8:12] and choice["logprobs"]["content"] == []
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12


def test_an_answer_without_reasoning_has_no_such_keys(message):
    for reply in ("Four.", "<think>\n\n</think>\n\nFour."):
        found = message(reply)
        assert found["content"] == "Four." and not {"reasoning", "reasoning_content"} & found.keys()


def test_log_probabilities_are_of_the_answer(ask, engine, text, stream):
    engine.reply = REPLY
    entries = ask(max_tokens=200, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"] or ()) == b"Four."
    parts = [chunk["choices"][0]["logprobs"] for chunk in stream(max_tokens=200, logprobs=True)]
    assert [entry for part in parts if part for entry in part["content"]] == entries


@pytest.mark.parametrize("choice", ["auto", {"type": "function", "function": {"name": "now"}}])
def test_calls_come_after_it(message, stream, choice):
    options = {"tools": [NOW], "tool_choice": choice, "max_tokens": 300}
    found = message(THOUGHT + CALL, **options)
    assert [call["function"]["name"] for call in found["tool_calls"]] == ["now"]
    assert found["reasoning"] == "It is four, I think." and found["content"] is None
    chunks = stream(**options)
    assert folded(chunks)["reasoning"] == "It is four, I think."
    assert sum("role" in chunk["choices"][0]["delta"] for chunk in chunks) == 1
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "now"


def test_each_choice_has_its_own(ask, engine, text):
    engine.reply = lambda request: (REPLY if request.choice else "Four.").encode()
    first, second = ask(max_tokens=200, n=2).json()["choices"]
    assert "reasoning" not in first["message"] and second["message"]["reasoning"] == "It is four, I think."


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_both_names_are_accepted(ask, text, name):
    """The template reads the first one; a message may consist of reasoning alone."""
    said = [{"role": "assistant", "content": None, name: "It is four."}, {"role": "user", "content": "Sure?"}]
    assert ask(messages=[{"role": "user", "content": "2 + 2?"}, *said]).status_code == 200
    expected = {"role": "assistant", "content": "", "reasoning_content": "It is four."}
    assert text.rendered["messages"][1] == expected
    reply = ask(messages=[said[0] | {name: ["x"]}])
    assert reply.status_code == 400 and reply.json()["error"]["param"] == f"messages[0].{name}"


def test_a_request_can_leave_it_out_or_in(message):
    found = message(include_reasoning=False)
    assert found["content"] == "Four." and "reasoning" not in found
    for off in ({"separate_reasoning": False}, {"reasoning_format": "none"}):
        assert message(**off)["content"] == REPLY


def test_the_flag_decides_for_all(message, server):
    server.served.reasoning_format = "none"
    assert message()["content"] == REPLY
    server.served.reasoning_format = "mistral"
    assert message()["content"] == REPLY
    found = message("[THINK]It is four.[/THINK]Four.")
    assert (found["reasoning"], found["content"]) == ("It is four.", "Four.")


def test_a_model_without_marks_says_them_as_text(ask, engine):
    engine.reply = REPLY
    assert ask(max_tokens=200).json()["choices"][0]["message"]["content"] == REPLY


def test_completions_and_tgis_routes_return_the_text_as_it_is(http, engine, text):
    engine.reply = REPLY
    body = http.post("/v1/completions", json={"model": MODEL, "prompt": "2 + 2?", "max_tokens": 200}).json()
    assert body["choices"][0]["text"] == REPLY
    body = http.post("/generate", json={"inputs": "2 + 2?", "parameters": {"max_new_tokens": 200}}).json()
    assert body["generated_text"] == REPLY


def test_the_official_client_reads_it(client, engine, text):
    engine.reply = REPLY
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "2 + 2?"}], max_tokens=200
    )
    message = json.loads(reply.choices[0].message.model_dump_json())
    assert message["reasoning_content"] == "It is four, I think."
    assert reply.usage.completion_tokens_details.reasoning_tokens == len(THOUGHT.rstrip())


@pytest.mark.parametrize("opening", ["", "<think>\n", "<think>\n\n</think>\n\n"])
def test_a_grammar_begins_after_it(ask, engine, text, opening):
    """Each request's grammar allows reasoning where its prompt leaves room for it, and then JSON alone."""
    text.opening = opening
    assert ask(response_format={"type": "json_object"}, max_tokens=5).status_code == 200
    grammar = engine.requests[-1].params.grammar
    assert ("</think>" in grammar, "<think>" in grammar) == ("</" not in opening, opening == "")
    assert ask(response_format={"type": "json_object"}, max_tokens=5, separate_reasoning=False)
    assert "think>" not in engine.requests[-1].params.grammar


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_are_constrained_after_it(message, engine, choice):
    strict = {"type": "function", "function": NOW["function"] | {"strict": True}}
    found = message(THOUGHT + CALL, tools=[strict], tool_choice=choice)
    assert found["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert found["reasoning"] == "It is four, I think."
    assert "</think>" in engine.requests[-1].params.grammar


def test_messages_have_a_block_of_it(http, engine, text):
    """Its deltas, a signature that proves nothing, and the text; it can be left out, turned off, limited."""
    engine.reply = REPLY

    def post(**changes):
        asked = [{"role": "user", "content": "2 + 2?"}]
        body = {"model": MODEL, "max_tokens": 200, "messages": asked} | changes
        return http.post("/v1/messages", json=body)

    thought, said = post().json()["content"]
    assert thought == {"type": "thinking", "thinking": "It is four, I think.", "signature": "unsigned"}
    assert said == {"type": "text", "text": "Four."}
    lines = post(stream=True).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    first = [event for event in events if event.get("index") == 0]
    assert first[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [event["delta"] for event in first[1:-1]]
    assert "".join(delta.get("thinking", "") for delta in deltas) == thought["thinking"]
    assert deltas[-1] == {"type": "signature_delta", "signature": "unsigned"}
    assert first[-1]["type"] == "content_block_stop"
    omitted = post(thinking={"type": "adaptive", "display": "omitted"}).json()
    assert omitted["content"] == [said]
    text.template_options = frozenset({"enable_thinking", "reasoning_effort"})
    post(thinking={"type": "disabled"}, output_config={"effort": "low"})
    assert text.rendered["options"] == {"enable_thinking": False, "reasoning_effort": "low"}
    refused = post(thinking={"type": "sometimes"})
    assert refused.status_code == 400 and "thinking.type" in refused.json()["error"]["message"]
