"""A grammar begins where the reasoning has ended: exactly there, whatever the reasoning says."""

from hypothesis import given
from hypothesis import strategies as st

from distaff.checkpoints.grammars.grammar import (
    check_grammar,
    choice_grammar,
    json_schema_grammar,
    regex_grammar,
)
from distaff.checkpoints.grammars.joining import either
from distaff.server.reasoning import FORMATS, Limit, ReasoningFormat, grammar_of_reply
from distaff.server.tool_formats import FORMATS as TOOL_FORMATS
from distaff.server.tool_formats import Tool

from ...checkpoints.grammars.walking import allowed, compiler, tokenizer

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
JSON = json_schema_grammar(NUMBER | {"additionalProperties": False})


def calls(name, required):
    tools = [Tool("now", None, None)]
    return TOOL_FORMATS[name].grammar(tools, required=required, parallel=True, token_id=lambda _: None)


ANSWERS = {
    "json": JSON,
    "choice": choice_grammar(["yes", "no", "yes."]),
    "pattern": regex_grammar("[a-z<>/ ]*"),
    "hermes": calls("hermes", True),
    "hermes, free": calls("hermes", False),
    "llama3, free": calls("llama3", False),
    "json or calls": either(calls("hermes", True), JSON),
}
WRITTEN = [
    '{"n": 1}', '{"n": "1"}', "yes", "yes.", "YES", "ab <c>", "{", "",
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', '{"name": "now", "parameters": {}}',
    "So: <tool_call>\n{}\n</tool_call>",
]  # fmt: skip
THOUGHTS = st.lists(
    st.sampled_from(["ab", "\n\n", " ", '"', "{", "<", "</th", "<think>", "<tool_call>", "é"]), max_size=6
).map("".join)
SPECIAL = ReasoningFormat("special", tokenizer().token_name(1), tokenizer().token_name(2))
formats = st.sampled_from([*FORMATS.values(), SPECIAL])
answers = st.sampled_from([*ANSWERS.values()])


ENDS = frozenset(tokenizer().eos_ids)
BYTES = {raw[0]: i for i in range(300) if (raw := tokenizer().token_bytes(i)) and len(raw) == 1}


def ids_of(text):
    """A token for each byte, and one for each mark that is a special token."""
    special = tokenizer().special_id(text)
    return [special] if special is not None else [BYTES[byte] for byte in text.encode()]


def followed(grammar, *texts):
    """How many tokens of texts a grammar allows, and whether a reply may end after all of them."""
    matcher = compiler()(grammar)
    ids = [token for text in texts for token in ids_of(text)]
    for place, token in enumerate(ids):
        if matcher.complete or token not in allowed(matcher):
            return place, False
        matcher.consume(token)
        assert matcher.error is None, matcher.error
    return len(ids), matcher.complete or not ENDS.isdisjoint(allowed(matcher))


PLAIN = ReasoningFormat("plain", "<think>", "<tool>")
MARKS = {each.end: tokenizer().encode(each.end, add_special_tokens=False)[0] for each in (PLAIN, SPECIAL)}
limited = st.sampled_from([PLAIN, SPECIAL])
"""Formats whose mark at the end is one token, special or not."""


def reply_grammar(format, place, answer, most=None):
    limit = Limit(most, MARKS[format.end]) if most else None
    grammar = grammar_of_reply(format, place, answer, tokenizer().special_id, limit)
    check_grammar(grammar)
    return grammar


@given(formats, answers, THOUGHTS, st.sampled_from(["", "\n\n"]), st.sampled_from(WRITTEN))
def test_after_the_mark_a_reply_is_what_the_answer_may_be(format, answer, thought, gap, text):
    expected = followed(answer, text)
    for place, before in (("inside", ""), ("before", format.begin)):
        head = (before, thought, format.end, gap)
        size, ends = followed(reply_grammar(format, place, answer), *head, text)
        assert (size - sum(len(ids_of(part)) for part in head), ends) == expected


@given(formats, answers, st.sampled_from(WRITTEN))
def test_without_reasoning_a_reply_is_an_answer(format, answer, text):
    """A text that begins like the mark is allowed so far."""
    size, ends = followed(reply_grammar(format, "before", answer), text)
    expected = followed(answer, text)
    assert ends == expected[1] and (size == expected[0] or text[:size] in format.begin)
    assert grammar_of_reply(format, "after", answer, tokenizer().special_id) == answer


@given(formats, answers, THOUGHTS)
def test_reasoning_alone_is_no_reply(format, answer, thought):
    size, ends = followed(reply_grammar(format, "inside", answer), thought)
    assert size == len(thought.encode()) and not ends


@given(limited, st.sampled_from([JSON, None]), st.integers(1, 12), THOUGHTS)
def test_reasoning_has_at_most_so_many_tokens(format, answer, most, thought):
    """Then only the mark may follow, and after it the answer, as if the model had written it."""
    matcher, mark = compiler()(reply_grammar(format, "inside", answer, most)), MARKS[format.end]
    said = ids_of(thought)[:most]
    for token in said:
        assert token in allowed(matcher)
        matcher.consume(token)
    assert allowed(matcher) == [mark] if len(said) == most else len(allowed(matcher)) > 100
    assert mark in allowed(matcher)
    matcher.consume(mark)
    if answer is None:
        assert allowed(matcher) == list(range(tokenizer().vocabulary))
    else:
        assert BYTES[ord("{")] in allowed(matcher) and BYTES[ord("a")] not in allowed(matcher)


@given(limited, THOUGHTS)
def test_a_limit_constrains_nothing_else(format, text):
    """Neither a reply without reasoning nor the answer."""
    grammar, text = reply_grammar(format, "before", None, 12), "So " + text
    for head in ([], [*ids_of(format.begin), *ids_of("ab"), MARKS[format.end]]):
        matcher = compiler()(grammar)
        for token in [*head, *ids_of(text)]:
            assert token in allowed(matcher)
            matcher.consume(token)
        assert not ENDS.isdisjoint(allowed(matcher))


@given(formats, THOUGHTS, st.data())
def test_a_reply_that_is_taken_over_goes_on_alike(format, thought, data):
    """By another engine, which follows the tokens so far with a matcher of its own."""
    grammar = reply_grammar(format, "before", JSON)
    ids = [token for text in (format.begin, thought, format.end, '{"n": 1}') for token in ids_of(text)]
    place = data.draw(st.integers(0, len(ids) - 1))
    one, other = compiler()(grammar), compiler()(grammar)
    for token in ids[:place]:
        one.consume(token)
        allowed(one)
        other.consume(token)
    assert allowed(one) == allowed(other) and ids[place] in allowed(other)
