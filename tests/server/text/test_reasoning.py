"""Reasoning before an answer: deltas, entries and counts are right, whatever the tokens are cut from it."""

from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.request import TokenEvent, TokenLogprobs
from distaff.server.reasoning import FORMATS, ReasoningSplitter
from distaff.server.text.choice import ChoiceText
from distaff.server.text.deltas import End, Piece, Reasoning, Start
from distaff.server.text.stops import StopSearch
from distaff.server.text.text_model import SpecialsShown

from .test_logprobs import Pieces, joined

DEEPSEEK = FORMATS["deepseek"]
SCORE = TokenLogprobs(chosen=-0.5)
WORDS = st.lists(st.sampled_from(["ab", " ", "\n", "é", "🙂", "<", "</th", "stop", ">"]), max_size=6)


class Marked(Pieces):
    """Some tokens are special, and have the names of marks."""

    def token_name(self, token):
        return self.names.get(token, super().token_name(token))

    def special_id(self, name):
        return next((token for token in self.names if self.token_name(token) == name), None)


def run(pieces, *, place="before", stops=(), finish="stop", **options):
    """The deltas of tokens, which are bytes, or names of special tokens."""
    text = Marked([piece if isinstance(piece, bytes) else None for piece in pieces])
    text.names = {i: piece for i, piece in enumerate(pieces) if isinstance(piece, str)}
    shown = SpecialsShown(text, DEEPSEEK.marks)
    splitter = ReasoningSplitter(DEEPSEEK, place)
    choice = ChoiceText(shown, (), StopSearch(stops), logprobs=True, reasoning=splitter, **options)
    events = [TokenEvent(request_id="r", token=i, logprobs=SCORE) for i in range(len(pieces))]
    deltas = []
    for event in [*events, TokenEvent(request_id="r", finish=finish)]:
        deltas += choice.push(0, event)
        if choice.finish:
            break
    return choice, deltas


def said(deltas):
    """The reasoning, the content and the bytes of the entries; the order of deltas is checked."""
    kinds = [type(delta) for delta in deltas]
    assert kinds == sorted(kinds, key=[Start, Reasoning, Piece, End].index)
    thought = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    content = "".join(delta.text for delta in deltas if isinstance(delta, Piece))
    entries = [e for delta in deltas if isinstance(delta, Piece | End) for e in delta.logprobs or []]
    return thought, content, joined([entry.to_dict() for entry in entries])


@st.composite
def cut(draw, text):
    """The UTF-8 of a text, cut anywhere; marks may be special tokens."""
    pieces = []
    for part in text.replace("<think>", "\0<think>\0").replace("</think>", "\0</think>\0").split("\0"):
        if part in DEEPSEEK.marks and draw(st.booleans()):
            pieces.append(part)
            continue
        data = part.encode()
        cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
        whole = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        if pieces and isinstance(pieces[-1], bytes) and draw(st.booleans()):
            whole[0] = pieces.pop() + whole[0]
        pieces += whole
    return pieces


@given(st.data(), WORDS, WORDS, st.sampled_from(["before", "inside"]))
def test_entries_are_those_of_the_answer(data, thought, answer, place):
    thought, answer = "".join(thought), "".join(answer)
    begin = DEEPSEEK.begin if place == "before" else ""
    choice, deltas = run(data.draw(cut(f"{begin}{thought}</think>{answer}")), place=place)
    assert said(deltas) == (thought.strip(), answer.lstrip(), answer.lstrip().encode())
    assert choice.finish == "stop" and bool(choice.reasoning_tokens) == bool(thought.strip())


@given(st.data(), WORDS, WORDS)
def test_a_stop_string_is_searched_in_the_answer_alone(data, thought, answer):
    thought, answer = "".join(thought), "".join(answer)
    _, deltas = run(data.draw(cut(f"<think>{thought}</think>{answer}")), stops=["stop", "<|end|>"])
    content = answer.lstrip().partition("stop")[0]
    assert said(deltas) == (thought.strip(), content, content.encode())


@given(st.data(), WORDS)
def test_a_reply_that_ends_in_its_reasoning_has_no_answer(data, thought):
    pieces = data.draw(cut("<think>" + "".join(thought)))
    choice, deltas = run(pieces, finish="length")
    assert said(deltas) == ("".join(thought).strip(), "", b"")
    assert choice.finish == "length" and deltas[-1].logprobs == []
    assert choice.reasoning_tokens in (0, len(pieces))


def test_the_tokens_of_reasoning_are_counted_with_its_marks():
    pieces = ["<think>", b"so", b" it", "</think>", b"\n\n", b"Yes", b"."]
    choice, deltas = run(pieces)
    assert (choice.reasoning_tokens, choice.tokens) == (4, 7)
    assert [entry.id for delta in deltas if isinstance(delta, Piece) for entry in delta.logprobs] == [5, 6]
    assert run([b"<think>", b"\n\n", b"</think>", b"Yes"])[0].reasoning_tokens == 0


def test_reasoning_that_is_not_shown_is_counted():
    choice, deltas = run([b"<think>so</think>", b"Yes"], show_reasoning=False)
    assert said(deltas) == ("", "Yes", b"Yes") and choice.reasoning_tokens == 1


def test_a_special_token_can_be_a_stop_string_in_the_answer_alone():
    _, deltas = run(["<think>", "<|end|>", b"so", "</think>", b"Yes", "<|end|>", b"No"], stops=["<|end|>"])
    assert said(deltas)[:2] == ("so", "Yes")
    assert said(run(["<|end|>", b"No"], stops=["<|end|>"])[1])[:2] == ("", "")
