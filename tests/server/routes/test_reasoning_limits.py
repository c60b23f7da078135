"""How much a model may reason: not at all, so many tokens, or as its template says."""

import pytest

from .thinking_text import OFF, MarkIsOneToken, ThinkingText


@pytest.fixture
def text(server):
    server.served.text = text = ThinkingText()
    return text


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
