"""Anthropic's conversations -> the template's messages: what is sent again comes to the same, in any form."""

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distaff.server.protocol.anthropic.conversation import read_conversation
from distaff.server.protocol.anthropic.volatile import stable_system, stable_user
from distaff.server.protocol.fields import Fields

words = st.text("ab <>\n", min_size=1, max_size=8)
texts = words.map(lambda text: {"type": "text", "text": text})
SYSTEM = ["You are an agent.", "Work in steps.\nUse tools."]


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A conversation as an agent holds it: questions, calls, their results, reminders of the system."""
    found: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 6))):
        found.append({"role": "user", "content": draw(st.lists(texts, min_size=1, max_size=3))})
        if draw(st.booleans()):
            found.append({"role": "system", "content": [draw(texts)]})
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "f", "input": {"a": draw(words)}}
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": [draw(texts)]}
        found.append({"role": "assistant", "content": [draw(texts), use]})
        found.append({"role": "user", "content": [result, *draw(st.lists(texts, max_size=1))]})
        found.append({"role": "assistant", "content": [draw(texts)]})
    return found


def read(system: Any, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    body = {"system": system, "messages": messages}
    before = deepcopy(body)
    found = read_conversation(Fields(body))
    assert body == before
    return found


@st.composite
def otherwise(draw: st.DrawFn, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, in a form in which another request may send it: marks of the cache, strings for blocks."""

    def marked(block: dict[str, Any]) -> dict[str, Any]:
        return block | ({"cache_control": {"type": "ephemeral"}} if draw(st.booleans()) else {})

    def form(content: list[dict[str, Any]]) -> Any:
        plain = len(content) == 1 and content[0]["type"] == "text" and draw(st.booleans())
        return content[0]["text"] if plain else list(map(marked, content))

    return [message | {"content": form(message["content"])} for message in messages]


def heading(number: int) -> list[dict[str, str]]:
    """A system prompt with what changes with every request."""
    billing = f"x-anthropic-billing-header: cc_version=2.1; cch={number};"
    marked = f"{SYSTEM[1]}\n<total_tokens>{1000 - number} tokens left</total_tokens>"
    return [{"type": "text", "text": text} for text in (billing, SYSTEM[0], marked)]


@given(st.data())
def test_the_form_changes_nothing(data: st.DataObject) -> None:
    """Neither marks of the cache, nor strings for single blocks, nor volatile heads."""
    messages = data.draw(turns())
    plain = read("\n\n".join(SYSTEM), messages)
    for number in range(2):
        assert read(heading(number), data.draw(otherwise(messages))) == plain


@given(st.data())
def test_the_next_turn_begins_with_the_one_before(data: st.DataObject) -> None:
    """So its prompt does, too, and is found in the cache."""
    messages = data.draw(turns())
    before: list[dict[str, Any]] = []
    for end in range(1, len(messages) + 1):
        if any(block["type"] == "tool_use" for block in messages[end - 1]["content"]):
            continue
        found = read(heading(end), data.draw(otherwise(messages[:end])))
        assert found[: len(before)] == before and len(found) > len(before)
        before = found


@given(st.lists(words, min_size=1), st.integers(0, 10**6))
def test_marks_are_removed_wherever_they_are(parts: list[str], left: int) -> None:
    """From a system's text; a user's own words stay, unless they are a mark alone."""
    mark = f"<total_tokens>{left} tokens left</total_tokens>"
    text = "".join(parts)
    assert stable_system(mark + text.lstrip()) == stable_system(text.lstrip())
    assert "total_tokens>" not in stable_system(mark.join(parts))
    assert stable_user(f"{text}{mark}") == ("" if not text.strip() else f"{text}{mark}")
    assert stable_user(f"\n{mark}\n") == ""


def test_a_billing_header_is_one_line() -> None:
    assert stable_system("x-anthropic-billing-header: a; b\nRest") == "Rest"
    assert stable_system("x-anthropic-billing-header: a; b") == ""
    assert stable_system("See x-anthropic-billing-header: a") == "See x-anthropic-billing-header: a"


def test_long_runs_of_spaces_cost_little() -> None:
    """The time to look for marks is linear in the text."""
    assert len(stable_system("<total_tokens>" * 20_000 + " " * 500_000)) == 780_000
