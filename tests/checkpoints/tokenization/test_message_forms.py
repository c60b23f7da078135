"""Conversations that OpenAI's API accepts, with templates that have the checks of real ones.

Each template is named after the family with the same checks of order, calls and ids.
"""

import itertools
import json
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from distaff.checkpoints.tokenization.chat_template import ChatTemplate, TemplateError
from distaff.checkpoints.tokenization.message_forms import shorten_ids, split_calls


def _refuse(condition: str, text: str) -> str:
    return f"{{% if {condition} %}}{{{{ raise_exception('{text}') }}}}{{% endif %}}"


_ALTERNATE = (
    _refuse("(m.role == 'user') != (count.n % 2 == 0)", "roles must alternate")
    + "{% set count.n = count.n + 1 %}"
)
_COUNT = "{% set count = namespace(n=0) %}"
_LEAD = (
    _COUNT + "{% set rest = messages %}{% if messages and messages[0].role == 'system' %}"
    "{% set rest = messages[1:] %}<<{{ messages[0].content }}>>{% endif %}"
)
_ONE_CALL = _refuse("m.tool_calls and m.tool_calls | length != 1", "only single tool-calls at once!")
_SHORT = (
    "{% for c in m.tool_calls %}" + _refuse("c.id | length != 9", "length 9!") + "{% endfor %}"
    "{% if m.tool_call_id is defined %}"
    + _refuse("m.tool_call_id | length != 9", "length 9!")
    + "{% endif %}"
)
_SAY = (
    "[{{ m.role }}] {{ m.content }} {{ m.tool_call_id or '' }}"
    "{% for c in m.tool_calls %}!{{ c.function.name }} {{ c.id }} {% endfor %}{% endfor %}"
)
_EACH, _REST = "{% for m in messages %}", "{% for m in rest %}"
_TURNS = (
    _refuse("m.role == 'system'", "only the first may be!")
    + "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    + _ALTERNATE
    + "{% endif %}"
)

TOOLS = {
    "chatml": _EACH + _SAY,
    "llama 3": _EACH + _ONE_CALL + _SAY,
    "mistral": _LEAD + _REST + _SHORT + _TURNS + _SAY,
    "all at once": _LEAD + _REST + _SHORT + _ONE_CALL + _TURNS + _SAY,
}
PLAIN = {
    "llama 2": _LEAD + _REST + _ALTERNATE + _SAY,
    "gemma": _COUNT + _EACH + _refuse("m.role == 'system'", "not supported") + _ALTERNATE + _SAY,
}
OURS = {name: ChatTemplate(source, {}) for name, source in (TOOLS | PLAIN).items()}
THEIRS = {
    name: transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=source)
    for name, source in (TOOLS | PLAIN).items()
}

ROLES = st.sampled_from(["system", "user", "assistant"])
IDS = ["call_" + "x" * 24, "a", "aB3dE6gH9", ""]
CALLS = st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True)
STEPS = st.lists(ROLES | CALLS, min_size=1, max_size=6)


def conversation(steps: list[Any]) -> list[dict[str, Any]]:
    """Texts t0, t1 …: one for each role; a list of ids is calls of f0, f1 … and their results."""
    messages: list[dict[str, Any]] = []
    texts, functions = (map(f"{letter}{{}}.".format, itertools.count()) for letter in "tf")
    for step in steps:
        if isinstance(step, str):
            messages.append({"role": step, "content": next(texts)})
            continue
        heads = [{"name": next(functions), "arguments": {}} for _ in step]
        calls = [
            {"id": id, "type": "function", "function": head} for id, head in zip(step, heads, strict=True)
        ]
        messages.append({"role": "assistant", "content": next(texts), "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": id, "content": next(texts)} for id in step]
    return messages


def render(template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    return template.render(messages, add_generation_prompt=True, continue_final_message=False)


def ordered(text: str, parts: list[str]) -> bool:
    """Checks that each is in the text once, in this order."""
    places = [text.index(part) for part in parts]
    return places == sorted(places) and all(text.count(part) == 1 for part in parts)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=50, deadline=None)
@given(steps=STEPS)
def test_accepted_conversations_are_unchanged(name: str, steps: list[Any]) -> None:
    """It is rendered as transformers renders it."""
    messages = conversation(steps)
    try:
        expected = THEIRS[name].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # the template's refusal
        return
    assert render(OURS[name], messages) == expected


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=50, deadline=None)
@given(steps=STEPS)
def test_every_conversation_is_accepted(name: str, steps: list[Any]) -> None:
    """Nothing is lost or repeated; texts keep their order, except results, which follow their calls."""
    messages = conversation(steps)
    before = json.dumps(messages)
    text = render(OURS[name], messages)
    assert json.dumps(messages) == before
    results = [m["content"] for m in messages if m["role"] == "tool"]
    called = [call["function"]["name"] for m in messages for call in m.get("tool_calls", ())]
    assert ordered(text, [m["content"] for m in messages if m["role"] != "tool"])
    assert ordered(text, results) and ordered(text, called)
    assert all(ordered(text, [call, result]) for call, result in zip(called, results, strict=True))


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=50, deadline=None)
@given(roles=st.lists(ROLES, min_size=1, max_size=6))
def test_every_order_of_roles_is_accepted(name: str, roles: list[str]) -> None:
    """With templates without tools, and without a system role."""
    messages = conversation(roles)
    assert ordered(render(OURS[name], messages), [m["content"] for m in messages])


@pytest.mark.parametrize(
    "name, roles, expected",
    [
        ("llama 2", "system system user", "<<t0.\n\nt1.>>[user] t2. "),
        ("mistral", "system user system user", "<<t0.>>[user] t1.\n\nt2.\n\nt3. "),
        ("llama 2", "user user assistant", "[user] t0.\n\nt1. [assistant] t2. "),
        ("llama 2", "user assistant assistant user", "[user] t0. [assistant] t1.\n\nt2. [user] t3. "),
        ("llama 2", "assistant user", "[user]  [assistant] t0. [user] t1. "),
        ("llama 2", "user assistant system", "[user] t0. [assistant] t1. [user] t2. "),
        ("gemma", "system user system user", "[user] t0.\n\nt1.\n\nt2.\n\nt3. "),
        ("gemma", "system assistant user", "[user] t0. [assistant] t1. [user] t2. "),
        ("chatml", "user user system", "[user] t0. [user] t1. [system] t2. "),
    ],
)
def test_how_roles_are_brought_into_order(name: str, roles: str, expected: str) -> None:
    assert render(OURS[name], conversation(roles.split())) == expected


def test_calls_are_written_one_by_one() -> None:
    """Each is followed by its result, for any order of the results; the text stays with the first."""
    messages = conversation(["user", ["a", "b"]])
    messages[2:] = reversed(messages[2:])
    first, second = "[assistant] t1. !f0. a [tool] t2. a", "[assistant]  !f1. b [tool] t3. b"
    assert render(OURS["llama 3"], messages) == f"[user] t0. {first}{second}"
    unmatched = {"role": "tool", "tool_call_id": "c", "content": "x"}
    assert split_calls([*messages, unmatched])[-1] == unmatched


def test_only_what_is_refused_changes() -> None:
    """A template that refuses only ids gets unchanged roles and calls."""
    messages = conversation(["user", ["a", "b"], "user", "user"])
    text = render(ChatTemplate(_EACH + _SHORT + _SAY, {}), messages)
    roles = [part.split("]")[0] for part in text.split("[")[1:]]
    assert roles == ["user", "assistant", "tool", "tool", "user", "user"]


def _pairs(messages: Any) -> list[tuple[str, str]]:
    """The ids of calls, each with that of its result."""
    calls, results = messages[::2], messages[1::2]
    return [(a["tool_calls"][0]["id"], b["tool_call_id"]) for a, b in zip(calls, results, strict=True)]


@given(
    st.lists(st.text(max_size=9) | st.from_regex("[a-zA-Z0-9]{9}", fullmatch=True), max_size=30, unique=True)
)
def test_short_ids(ids: list[str]) -> None:
    """Nine letters or digits; such ids are kept; equal ids stay equal, different ids stay different."""
    messages = [message for id in ids for message in conversation([[id]])]
    found = _pairs(shorten_ids(messages))
    assert all(a == b and len(a) == 9 and a.isascii() and a.isalnum() for a, b in found)
    assert len(set(found)) == len(ids)
    fit = {id for id in ids if len(id) == 9 and id.isascii() and id.isalnum()}
    assert all(a == id for (a, _), id in zip(found, ids, strict=True) if id in fit)
    assert shorten_ids(messages[:2]) == shorten_ids(messages)[:2]


def test_if_every_form_is_refused_the_first_error_is_raised() -> None:
    template = ChatTemplate("{{ raise_exception(messages | length | string ~ ' are too many') }}", {})
    with pytest.raises(TemplateError, match="2 are too many"):
        render(template, conversation(["assistant", "user"]))
