"""Reasoning and answer are the same however a reply is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.reasoning import FORMATS, ReasoningSplitter, format_of

PLACES = ("before", "inside", "after")
formats = st.sampled_from([*FORMATS.values()])


@st.composite
def replies(draw):
    """A format, where the reply begins, and its text in pieces: marks, parts of marks, white space, words."""
    format = draw(formats)
    marks = [part for mark in format.marks for part in (mark, mark[: len(mark) // 2], mark[len(mark) // 2 :])]
    words = st.lists(st.sampled_from([*marks, " ", "\n\n", "ab", "é", "<", "x y"]), max_size=8)
    text = draw(st.sampled_from(["", format.begin, "\n" + format.begin])) + "".join(draw(words))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return format, draw(st.sampled_from(PLACES)), pieces


def reference(format, place, text):
    """Reasoning and answer of a whole reply."""
    rest = text.lstrip()
    if place == "after" or (place == "before" and not rest.startswith(format.begin)):
        return "", text
    rest = rest[len(format.begin) :] if rest.startswith(format.begin) else text
    thought, _, answer = rest.partition(format.end)
    return thought.strip(), answer.lstrip()


@given(replies())
def test_any_pieces_give_what_the_whole_gives(reply):
    format, place, pieces = reply
    splitter, thought, answer, skipped = ReasoningSplitter(format, place), "", "", 0
    expected = reference(format, place, "".join(pieces))
    for number, piece in enumerate(pieces, 1):
        split = splitter.push(piece, last=number == len(pieces))
        assert not split.answer or splitter.ended
        thought, answer, skipped = thought + split.thought, answer + split.answer, skipped + split.skipped
        assert expected[0].startswith(thought) and expected[1].startswith(answer)
    assert (thought, answer) == expected
    assert "".join(pieces)[skipped:] == answer
    assert splitter.found == bool(thought)


@given(formats, st.text("ab <>/[]think", max_size=40))
def test_no_more_is_held_than_a_mark_and_white_space(format, text):
    splitter = ReasoningSplitter(format, "inside")
    split = splitter.push("so " + text)
    held = text.partition(format.end)[0][len(split.thought) - 3 :]
    assert splitter.ended or len(held.strip()) < len(format.end)


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ '<think>\\n' }}", (), "deepseek"),
        ("content.split('</think>')", (), "deepseek"),
        ("[THINK]", (), "mistral"),
        ("{{ messages }}", ("<think>", "</think>"), "deepseek"),
        ("{{ messages }}", ("<think>",), None),
        ("{{ messages }}", (), None),
        (None, (), None),
    ],
)
def test_the_template_or_the_vocabulary_tells_the_format(template, tokens, name):
    format = format_of(template, tokens.__contains__)
    assert format == FORMATS.get(name)


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("<|Assistant|><think>\n", "inside"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "after"),
        ("<think>a</think>b<|im_end|><|im_start|>assistant\n", "before"),
        ("", "before"),
    ],
)
def test_a_prompts_end_tells_where_its_reply_begins(prompt, place):
    assert FORMATS["deepseek"].place_after(prompt) == place


def test_a_continued_message_is_in_its_last_reasoning():
    place = FORMATS["deepseek"].place_within
    assert place("<think>so") == place("<think>a</think>b<think>") == "inside"
    assert place("<think>a</think> b") == "after"
    assert place("b") == "before"
