"""Reasoning before the answer, over HTTP: split off in every protocol, accepted again, counted."""

import json

import pytest

from distaff.server.testing import BOS, FakeText

from ..conftest import MODEL

THOUGHT = "<think>\nIt is four, I think.\n</think>\n\n"
REPLY = THOUGHT + "Four."
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


class ThinkingText(FakeText):
    """The template of a model that reasons; `opening` is at the end of its prompts."""

    chat_template = tool_template = "{{ '<think>' }}"
    opening = ""

    def encode_chat(self, messages, **options):
        return [*super().encode_chat(messages, **options), *self.opening.encode()]


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


OFF = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(("opening", "added"), [("", OFF), ("<think>\n", OFF[7:]), (OFF, "")])
@pytest.mark.parametrize("off", [{"reasoning_effort": "none"}, {"max_reasoning_tokens": 0}])
def test_reasoning_can_be_turned_off(ask, engine, text, opening, added, off):
    """By marks where the template has no variable for it; a grammar then begins at once."""
    text.opening = opening
    assert ask(max_tokens=5, response_format={"type": "json_object"}, **off).status_code == 200
    prompt = bytes(token for token in engine.requests[-1].prompt if token < 256)
    assert prompt.endswith((opening + added).encode()) and prompt.count(b"</think>") == 1
    assert "think>" not in engine.requests[-1].params.grammar


def test_a_template_may_turn_it_off_itself(ask, engine, text):
    """The request's own variables win; an effort is passed on to templates that read it."""
    text.template_options = frozenset({"enable_thinking", "reasoning_effort"})
    ask(max_tokens=5, reasoning_effort="none")
    assert text.rendered["options"] == {"enable_thinking": False, "reasoning_effort": "none"}
    assert b"<think>" not in bytes(token for token in engine.requests[-1].prompt if token < 256)
    ask(max_tokens=5, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert text.rendered["options"]["enable_thinking"] is True
    ask(max_tokens=5, reasoning_effort="low")
    assert text.rendered["options"] == {"reasoning_effort": "low"}


class MarkIsOneToken(ThinkingText):
    """The mark that ends reasoning is one token, as in the vocabularies of models that reason."""

    def encode(self, text, *, add_special_tokens=True):
        return [BOS] if text == "</think>" else super().encode(text, add_special_tokens=add_special_tokens)

    def token_name(self, token):
        return "</think>" if token == BOS else super().token_name(token)


@pytest.mark.parametrize("name", ["max_reasoning_tokens", "thinking_token_budget"])
def test_reasoning_can_have_a_limit(ask, engine, server, text, name):
    """The engine ends it by a grammar, which every engine can follow again from the beginning."""
    reply = ask(max_tokens=5, **{name: 7})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_reasoning_tokens")
    server.served.text = text = MarkIsOneToken()
    assert ask(max_tokens=5, **{name: 7}).status_code == 200
    assert "max_tokens=7" in engine.requests[-1].params.grammar
    text.opening = OFF
    ask(max_tokens=5, **{name: 7})
    assert engine.requests[-1].params.grammar is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_reasoning_tokens": -1}, "max_reasoning_tokens"),
        ({"max_reasoning_tokens": 1, "thinking_token_budget": 1}, "thinking_token_budget"),
        ({"max_reasoning_tokens": 1, "separate_reasoning": False}, "max_reasoning_tokens"),
        ({"reasoning_format": "deepseek-legacy"}, "reasoning_format"),
        ({"stream_reasoning": False}, "stream_reasoning"),
    ],
)
def test_what_cannot_be_is_refused(ask, text, fields, param):
    reply = ask(**fields)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_a_mark_that_does_not_fit_is_counted(ask, engine, text):
    """The prompt is as long as the context allows, but for the marks."""
    room = engine.info.context - len(text.encode_chat([{"role": "user", "content": ""}]))
    content = "x" * (room - 5)
    assert ask(messages=[{"role": "user", "content": content}], max_tokens=5).status_code == 200
    reply = ask(messages=[{"role": "user", "content": content}], max_tokens=5, reasoning_effort="none")
    assert reply.json()["error"]["code"] == "context_length_exceeded"


@pytest.fixture
def respond(http, engine, text):
    """A whole answer of /v1/responses, and the events of the streamed one."""

    def answered(reply=REPLY, **changes):
        engine.reply = reply
        body = {"model": MODEL, "input": "2 + 2?", "max_output_tokens": 300} | changes
        streamed = (
            http.post("/v1/responses", json=body | {"stream": True}).content.decode().split("\n\n")[:-1]
        )
        events = [json.loads(event.split("data: ", 1)[1]) for event in streamed]
        return http.post("/v1/responses", json=body).json(), events

    return answered


def test_reasoning_is_an_item_before_the_message(respond):
    body, events = respond()
    reasoning, message = body["output"]
    assert reasoning.pop("id").startswith("rs_")
    assert reasoning == {
        "type": "reasoning",
        "summary": [],
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "It is four, I think."}],
        "encrypted_content": None,
    }
    assert message["content"][0]["text"] == "Four."
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len(THOUGHT.rstrip())
    kinds = [event["type"].removeprefix("response.") for event in events if event.get("output_index") == 0]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "It is four, I think."
    last = events[-1]["response"]["output"]
    assert [item["type"] for item in last] == ["reasoning", "message"]
    assert events[2]["item"]["content"] == []


def test_a_response_that_is_cut_short_may_be_reasoning_alone(respond):
    body, events = respond(max_output_tokens=12)
    [item] = body["output"]
    assert (item["type"], item["status"], body["status"]) == ("reasoning", "incomplete", "incomplete")
    assert events[-1]["type"] == "response.incomplete"


def test_a_response_has_its_own_place_for_the_effort(respond, engine):
    respond(reasoning={"effort": "none"})
    assert bytes(token for token in engine.requests[-1].prompt if token < 256).endswith(OFF.encode())
    respond(max_reasoning_tokens=0, reasoning={"effort": "high", "summary": "auto"})
    assert bytes(token for token in engine.requests[-1].prompt if token < 256).endswith(OFF.encode())


def test_a_call_follows_reasoning_at_once(respond):
    body, _ = respond(THOUGHT + CALL, tools=[{"type": "function", **NOW["function"]}])
    assert [item["type"] for item in body["output"]] == ["reasoning", "function_call"]


@pytest.mark.parametrize("kept", ["content", "encrypted_content"])
def test_items_are_accepted_as_they_were_answered(respond, text, kept):
    """Some clients send the one, some the other."""
    body, _ = respond(include=["reasoning.encrypted_content"])
    reasoning, message = body["output"]
    for name in {"content", "encrypted_content"} - {kept}:
        reasoning.pop(name)
    user = {"role": "user", "content": "Sure?"}
    respond(input=[{"role": "user", "content": "2 + 2?"}, reasoning, message, user])
    assert text.rendered["messages"][1:] == [
        {"role": "assistant", "content": "Four.", "reasoning_content": "It is four, I think."},
        user,
    ]


def test_reasoning_before_a_call_is_in_its_message(respond, text):
    call = {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]}
    output = {"type": "function_call_output", "call_id": "c", "output": "noon"}
    respond(input=[{"role": "user", "content": "Time?"}, thought, call, output, thought])
    _, first, result, second = text.rendered["messages"]
    assert first["reasoning_content"] == second["reasoning_content"] == "Ask." and "noon" in result["content"]


def test_what_another_server_has_encrypted_is_left_out(respond, text):
    secret = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    respond(input=[{"role": "user", "content": "2 + 2?"}, secret, {"role": "assistant", "content": "Four."}])
    assert "reasoning_content" not in text.rendered["messages"][1]


def test_the_official_client_reads_items(client, engine, text):
    engine.reply = REPLY
    reply = client.responses.create(model=MODEL, input="2 + 2?", max_output_tokens=200)
    assert reply.output_text == "Four." and reply.output[0].content[0].text == "It is four, I think."
    streamed = client.responses.create(model=MODEL, input="2 + 2?", max_output_tokens=200, stream=True)
    assert [event.text for event in streamed if event.type == "response.reasoning_text.done"] == [
        "It is four, I think."
    ]


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
