"""Calls of tools in the words of three families: found wherever they are, text left alone wherever not."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from distaff.checkpoints.grammars.grammar import check_grammar
from distaff.server.tool_formats import (
    FORMATS,
    CallArguments,
    CallStart,
    Text,
    Tool,
    format_of,
    tools_as_messages,
)
from distaff.server.tool_formats.envelope import Envelope
from distaff.server.tool_formats.parts import joined

WEATHER = Tool(
    "get_weather",
    "Of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
NOW = Tool("now", None, None)
TOOLS = (WEATHER, NOW)
BYTES = LLTokenizer("byte")

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text("ab\"\\{}[]<>/ü\n:,", max_size=9)
    | st.sampled_from(["</tool_call>", "<tool_call>", "[TOOL_CALLS]", "]", "; {"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a}", max_size=2), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
CALLS = st.lists(
    st.tuples(st.sampled_from(["get_weather", "now"]), st.dictionaries(st.text("xyz", max_size=3), VALUES)),
    min_size=1,
    max_size=3,
)
VALID = st.lists(
    st.one_of(
        st.builds(
            lambda city, unit: ("get_weather", {"city": city, "unit": unit}),
            st.text("Paris ü", max_size=8),
            st.sampled_from("CF"),
        ),
        st.just(("now", {})),
    ),
    min_size=1,
    max_size=3,
)
formats = pytest.mark.parametrize("format", list(FORMATS.values()), ids=list(FORMATS))


def written(format, calls) -> str:
    """Calls as a model writes them."""
    if format.divider:
        each = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
        return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in each)
    said = [
        f'{{"name": {json.dumps(name)}, "{format.key}": {json.dumps(arguments, ensure_ascii=False)}}}'
        for name, arguments in calls
    ]
    if not format.leading:
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in said)
    mark = f"{format.begin} " if format.opening else ""
    return mark + format.opening + format.separator.join(said) + format.closing


def parts_of(format, text, *, cut=None, vouched=False, parallel=True):
    """What a reply is taken for, in one piece or character by character."""
    parser = format.parser(TOOLS, parallel=parallel, vouched=vouched)
    pieces = [text] if cut is None else [text[i : i + cut] for i in range(0, len(text), cut)]
    return joined([part for piece in pieces for part in parser.push(piece)] + parser.flush())


def calls_of(parts):
    """Names and arguments; every call's fragments are one JSON object."""
    calls = []
    for part in parts:
        if isinstance(part, CallStart):
            calls.append([part.name, ""])
        elif isinstance(part, CallArguments):
            calls[-1][1] += part.text
    return [(name, json.loads(arguments)) for name, arguments in calls]


@formats
@given(calls=CALLS, vouched=st.booleans(), cut=st.none() | st.integers(1, 7))
def test_calls_that_are_written_are_found(format, calls, vouched, cut):
    """Whatever is in the arguments, however the text is cut, and whether or not a grammar vouches for it."""
    parts = parts_of(format, written(format, calls), cut=cut, vouched=vouched)
    assert calls_of(parts) == calls
    assert not any(isinstance(part, Text) for part in parts)


@formats
@given(calls=CALLS, text=st.text("abc {[<\n", max_size=12))
def test_text_before_calls_is_content(format, calls, text):
    """Its white space at the end is dropped."""
    parts = parts_of(format, "T" + text + "\n" + written(format, calls))
    assert parts[0] == Text(("T" + text).rstrip()) and calls_of(parts[1:]) == calls


TRAPS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_cal",
    "{",
    "}",
    '{"name": "now"',
    '"arguments"',
    "[TOOL_CALLS]",
]
TRAPS += [" " * 70, "\n" * 64, written(FORMATS["hermes"], [("now", {})])]
TRAPS += ['{"name": "now", "parameters": {}}', "now.call(", "x=1", ")", "; "]
TRAPS += ["[", "]", "<|python_tag|>", '{"name": "other", "arguments": {}}', " ", "\n", "text", "<", ","]


@formats
@settings(max_examples=300)
@given(text=st.lists(st.sampled_from(TRAPS), max_size=8).map("".join), cut=st.integers(1, 5))
def test_how_a_text_is_cut_does_not_matter(format, text, cut):
    """Also where it is nearly a call, or broken off in one."""
    assert parts_of(format, text, cut=cut) == parts_of(format, text)


@formats
@pytest.mark.parametrize("space", [60, 139, 140, 141, 150, 200, 300])
def test_how_much_space_is_cut_does_not_matter(format, space):
    """Behind a mark, where there may be so much of it that what follows is no call."""
    text = format.begin + " " * space + written(format, [("now", {})])
    assert parts_of(format, text, cut=1) == parts_of(format, text, cut=7) == parts_of(format, text)


@formats
@example(" <tool_call>")
@example("\n" * 100 + "<tool_call>" + " " * 100)
@given(st.lists(st.sampled_from([t for t in TRAPS if "now" not in t]), max_size=8).map("".join))
def test_what_is_no_call_stays_text(format, text):
    """All of it, to the character."""
    assert "".join(part.text for part in parts_of(format, text)) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[TOOL_CALLS]now[CALL_ID]abc123[ARGS]{"a": 1}', [("now", {"a": 1})]),
        ('[TOOL_CALLS]now{"a": 1}[TOOL_CALLS] now [ARGS] {}', [("now", {"a": 1})]),
        ("[TOOL_CALLS]later[ARGS]{}", []),
        ("[TOOL_CALLS]now[ARGS][1]", []),
        ("[TOOL_CALLS]now" + "x" * 300 + "{}", []),
    ],
)
def test_mistrals_named_calls(text, found):
    """With an id, which is dropped, or without the divider; of another function it is text."""
    parts = parts_of(FORMATS["mistral-args"], text, cut=1)
    assert calls_of(part for part in parts if not isinstance(part, Text)) == found
    assert found or parts == [Text(text)]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('Let me look. [TOOL_CALLS] [{"name": "now", "arguments": {}}]', "Let me look.", [("now", {})]),
        ('[TOOL_CALLS] {"name": "now", "arguments": {"a": 1}}', "", [("now", {"a": 1})]),
        ('[TOOL_CALLS][{"name": "now"}] [TOOL_CALLS] {"name": "now"}', "", [("now", {}), ("now", {})]),
        ('{"name": "now", "arguments": {}}', '{"name": "now", "arguments": {}}', []),
        ('So: [{"name": "now", "arguments": {}}]', 'So: [{"name": "now", "arguments": {}}]', []),
        ('[TOOL_CALLS] [[{"name": "now"}]]', '[TOOL_CALLS] [[{"name": "now"}]]', []),
    ],
)
def test_mistrals_lists_of_calls(text, content, calls):
    """Behind a sentence a mark is needed; one call may stand without a list."""
    check(FORMATS["mistral"], text, content, calls)


CALL = '{"name": "now", "parameters": {"a": "{"}}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"I look. {CALL}", "I look.", [("now", {"a": "{"})]),
        (f"I look.\n\n{CALL}; {CALL}\n", "I look.", [("now", {"a": "{"})] * 2),
        ('Hm: { "type":"function",\n"name":"now", "parameters": {} }', "Hm:", [("now", {})]),
        (f"A call is {CALL} or so.", f"A call is {CALL} or so.", []),
        (f"{{}} ```{CALL}\n```", f"{{}} ```{CALL}\n```", []),
        (f"Two: {CALL}; {{x", f"Two: {CALL}; {{x", []),
        ('See: {"name": "other", "parameters": {}}', 'See: {"name": "other", "parameters": {}}', []),
        (f"I look. <|python_tag|>{CALL} Done.", "I look.Done.", [("now", {"a": "{"})]),
        ('<|python_tag|>now.call(a="x)\\"", b = [1, {"c": null}],c=True)', "",
         [("now", {"a": 'x)"', "b": [1, {"c": None}], "c": True})]),
        ("Well. <|python_tag|>now.call()", "Well.", [("now", {})]),
        ("<|python_tag|>other.call(a=1)", "<|python_tag|>other.call(a=1)", []),
        ("<|python_tag|>now.call(a=b)", "<|python_tag|>now.call(a=b)", []),
        ("<|python_tag|>now.call(a=1, a=2)", "<|python_tag|>now.call(a=1, a=2)", []),
        ("<|python_tag|>now.call(a=NaN)", "<|python_tag|>now.call(a=NaN)", []),
        ("<|python_tag|>now.call(a=1", "<|python_tag|>now.call(a=1", []),
        ("<|python_tag|>import now\nnow.call(a=1)", "<|python_tag|>import now\nnow.call(a=1)", []),
        ("now.call(a=1)", "now.call(a=1)", []),
    ],
)  # fmt: skip
def test_llamas_calls_behind_text(text, content, calls):
    """One without a mark must end the reply; one in Python's words needs the mark."""
    check(FORMATS["llama3"], text, content, calls)


def check(format, text, content, calls):
    """In one piece and character by character."""
    for cut in (None, 1):
        parts = parts_of(format, text, cut=cut)
        assert calls_of(part for part in parts if not isinstance(part, Text)) == calls
        assert "".join(part.text for part in parts if isinstance(part, Text)) == content


def test_text_with_braces_is_not_held_back():
    """But for what may be a call: a program is told as it comes."""
    parser = FORMATS["llama3"].parser(TOOLS, parallel=True, vouched=False)
    assert parser.push("int f() { return") == [Text("int f() { return")]


def test_text_that_a_grammar_vouches_for_is_text():
    """Where a grammar leaves prose free, an object in it was not held to a schema."""
    text = f"I look. {CALL}"
    assert parts_of(FORMATS["llama3"], text, vouched=True) == [Text(text)]


@pytest.mark.parametrize("token", [None, 7])
def test_a_grammar_of_mistrals_calls_lets_text_precede_them(token):
    """Whether its mark is a token or is spelt; what looks like a list without a mark stays out."""
    grammar = FORMATS["mistral"].grammar(TOOLS, required=False, parallel=True, token_id=lambda name: token)
    mark = [token] if token else list(b"[TOOL_CALLS]")
    calls = [*mark, *b' [{"name": "now", "arguments": {}}]']
    for tokens, fits in [
        (calls, True),
        ([*b"I look. ", *calls], True),
        ([*b"I look."], True),
        ([*b"I look. ", *mark, *b" [1]"], False),
        ([*b'[{"name": "now"}]'], False),
    ]:
        matcher = LLMatcher(BYTES, grammar, log_level=0)
        assert (matcher.consume_tokens(tokens) and matcher.is_accepting()) == fits


@formats
def test_only_the_first_call_where_one_is_wanted(format):
    """What follows it is dropped."""
    calls = [("now", {}), ("now", {"a": 1})]
    assert calls_of(parts_of(format, written(format, calls), parallel=False)) == calls[:1]


@formats
def test_arguments_come_as_they_are_written_where_a_grammar_vouches(format):
    """The name is known before the arguments, and they before the end."""
    text = written(format, [("get_weather", {"city": "Paris", "unit": "C"})])
    parser = format.parser(TOOLS, parallel=True, vouched=True)
    parts = parser.push(text[: text.index("Paris")])
    assert [type(part) for part in parts] == [CallStart, CallArguments]
    assert parts[1].text == '{"city": "'


@formats
def test_a_call_that_is_cut_short_stays_as_it_was_streamed(format):
    """One whose name was told is a call; one whose name was not is text."""
    text = written(format, [("get_weather", {"city": "Paris", "unit": "C"})])
    streamed = parts_of(format, text[: text.index("Paris")], vouched=True)
    assert [type(part) for part in streamed] == [CallStart, CallArguments]
    early = text[: text.index("weather")]
    assert parts_of(format, early, vouched=True) == [Text(early)]


@formats
@pytest.mark.parametrize("trap", ["<tool_call>", "{", '"\\', "[TOOL_CALLS]", "[", " ", "<tool_call> {"])
def test_work_is_linear(format, trap, monkeypatch):
    """Each character is scanned once, and no envelope is read twice, whatever comes over and over."""
    scanned = 0
    scan = Envelope._scan

    def counting(self, character):
        nonlocal scanned
        scanned += 1
        scan(self, character)

    monkeypatch.setattr(Envelope, "_scan", counting)
    text = trap * (20_000 // len(trap))
    parts = parts_of(format, text, cut=3)
    assert scanned <= len(text) + 2
    assert "".join(part.text for part in parts) == text


def follows(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


@formats
@pytest.mark.parametrize("required", [True, False])
@settings(max_examples=30, deadline=None)
@given(calls=VALID)
def test_valid_calls_follow_the_grammar(format, required, calls):
    """And are found by the parser that relies on it."""
    grammar = format.grammar(TOOLS, required=required, parallel=True, token_id=lambda name: None)
    check_grammar(grammar)
    text = written(format, calls)
    assert follows(grammar, text)
    assert calls_of(parts_of(format, text, cut=1, vouched=True)) == calls


@formats
def test_what_does_not_follow_the_grammar(format):
    """Wrong arguments, other names, several where one is wanted; prose only where calls are required."""
    required, single, free = (
        format.grammar(TOOLS, required=r, parallel=p, token_id=lambda name: None)
        for r, p in [(True, True), (True, False), (False, True)]
    )
    for calls in ([("get_weather", {"city": "x"})], [("now", {"a": 1})], [("other", {})]):
        assert not follows(required, written(format, calls)) and not follows(free, written(format, calls))
    twice = written(format, [("now", {}), ("now", {})])
    assert follows(required, twice) and not follows(single, twice)
    assert follows(free, "It is noon.") and not follows(required, "It is noon.")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral-args"),
        ("<|python_tag|>", "llama3"),
        ("{{ '<|tool_call|>' + calls | tojson }}", "granite"),
        ("<tool_call> and python_tag", "hermes"),
        (None, "hermes"),
        ("{{ messages }}", "hermes"),
    ],
)
def test_the_template_tells_the_format(source, name):
    """By what it writes earlier calls in."""
    assert format_of(source).name == name


def test_tools_are_told_in_plain_messages():
    """For templates without a word for them: what may be called, what was, and what came of it."""
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": {"zone": "ü"}}}
    given_ = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "c"},
        {"role": "tool", "content": "still noon", "tool_call_id": "d"},
    ]
    before = json.dumps(given_)
    system, user, assistant, results = tools_as_messages(given_, TOOLS)
    assert json.dumps(given_) == before
    assert system["role"] == "system" and '"get_weather"' in system["content"]
    assert user == given_[0]
    assert assistant["content"] == '<tool_call>\n{"name": "now", "arguments": {"zone": "ü"}}\n</tool_call>'
    assert results["role"] == "user" and results["content"].count("<tool_response>") == 2
    assert tools_as_messages([{"role": "system", "content": "Be kind."}], TOOLS)[0]["content"].startswith(
        "Be kind.\n\n"
    )
    assert tools_as_messages([given_[0]], ()) == [given_[0]]
