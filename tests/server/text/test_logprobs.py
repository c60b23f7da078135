"""Log-probabilities line up with the text, whatever the tokens are cut from it."""

import codecs
import gc
import json

from hypothesis import example, given
from hypothesis import strategies as st

from distaff.runtime.request import TokenEvent, TokenLogprobs
from distaff.server.encode import to_json
from distaff.server.protocol.openai.chat_reply import FoldedChoice
from distaff.server.text.choice import ChoiceText
from distaff.server.text.deltas import End, Piece
from distaff.server.text.logprobs import FLOOR
from distaff.server.text.stops import StopSearch


class Pieces:
    """Byte strings by id; None is a special token. May drop the first space, as SentencePiece does."""

    has_template, eos_ids = True, ()

    def __init__(self, pieces, *, strip=False):
        self.pieces = pieces
        self.strip = strip

    def token_name(self, token):
        return f"<|{token}|>"

    def token_bytes(self, token):
        return self.pieces[token]

    def detokenizer(self, prompt=()):
        return self.Detokenizer(self)

    class Detokenizer:
        def __init__(self, vocabulary):
            self.vocabulary = vocabulary
            self.first = vocabulary.strip
            self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def push(self, token):
            text = self.decoder.decode(self.vocabulary.pieces[token] or b"")
            if text and self.first:
                text, self.first = text.removeprefix(" "), False
            return text

        def flush(self):
            return self.decoder.decode(b"", final=True)


def run(pieces, stops=(), *, strip=False):
    """The content and the entries of a sequence that says each piece once."""
    choice = ChoiceText(Pieces(pieces, strip=strip), (), StopSearch(stops), logprobs=True)
    content, entries = "", []
    events = [
        TokenEvent(request_id="r", token=i, logprobs=TokenLogprobs(chosen=-0.5, top=((i, -0.5),)))
        for i in range(len(pieces))
    ]
    for event in [*events, TokenEvent(request_id="r", finish="stop")]:
        for delta in choice.push(0, event):
            if isinstance(delta, Piece):
                content += delta.text
                entries += [entry.to_dict() for entry in delta.logprobs or []]
        if choice.finish:
            break
    return content, entries


def joined(entries):
    return b"".join(bytes(entry["bytes"] or ()) for entry in entries)


@st.composite
def cut_text(draw):
    """Some text, its UTF-8 cut anywhere."""
    data = draw(st.text("aé🙂 b", max_size=12)).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(cut_text(), st.booleans())
def test_the_bytes_of_the_entries_are_the_content(pieces, strip):
    content, entries = run(pieces, strip=strip)
    assert content == b"".join(pieces).decode()[strip and b"".join(pieces).startswith(b" ") :]
    assert joined(entries) == content.encode()


@example([b"aa\xc3", b"\xa9"], ["é"])
@example([b"aa\xc3\xa9", b"a"], ["éa"])
@example([b"\xc3", b"\xa9\xf0", b"\x9f\x99\x82"], ["🙂"])
@given(cut_text(), st.lists(st.text("aé🙂 b", min_size=1, max_size=3), max_size=2))
def test_a_stop_string_takes_its_entries_with_it(pieces, stops):
    content, entries = run(pieces, stops)
    assert joined(entries) == content.encode()


@given(st.lists(st.binary(max_size=3), max_size=8))
def test_bytes_that_are_no_text_are_told_as_they_are(pieces):
    content, entries = run(pieces)
    assert content == b"".join(pieces).decode(errors="replace")
    assert joined(entries).decode(errors="replace") == content


def test_a_chunk_that_completes_a_character_has_several_entries():
    _, entries = run([b"\xf0\x9f", b"\x99\x82", b"x"])
    assert [entry["token"] for entry in entries] == ["\\xf0\\x9f", "\\x99\\x82", "x"]
    assert entries[0]["bytes"] == [0xF0, 0x9F]


def test_a_token_cut_by_a_stop_string_is_told_as_far_as_it_was_sent():
    content, entries = run([b"Hel", b"lo wor", b"ld"], ["wor"])
    assert content == "Hello "
    assert [entry["token"] for entry in entries] == ["Hel", "lo "]


@given(cut_text(), st.lists(st.text("aé🙂 b", min_size=1, max_size=3), max_size=2), st.booleans())
def test_every_token_has_an_entry(pieces, stops, strip):
    """One that is nothing but text to come, one without a text, one of the stop string, the end token."""
    choice = ChoiceText(Pieces([*pieces, None], strip=strip), (), StopSearch(stops), logprobs=True)
    score, ids, entries = TokenLogprobs(chosen=-0.5), [], []
    events = [TokenEvent(request_id="r", token=i, logprobs=score) for i in range(len(pieces))]
    events.append(TokenEvent(request_id="r", finish="stop", end=len(pieces), logprobs=score))
    for event in events:
        said = choice.push(0, event)
        entries += [entry.id for delta in said if isinstance(delta, Piece | End) for entry in delta.logprobs]
        ids.append(event.token if event.end is None else event.end)
        if choice.finish:
            break
    assert entries == ids and choice.tokens == len(ids)


def test_a_special_token_has_no_bytes():
    _, entries = run([b"a", None, b"b"])
    assert [entry["bytes"] for entry in entries] == [[97], None, [98]]
    assert entries[1]["token"] == "<|1|>"


def test_what_is_impossible_is_finite():
    choice = ChoiceText(Pieces([b"a"]), (), StopSearch(()), logprobs=True)
    odd = TokenLogprobs(chosen=float("-inf"), top=((0, float("nan")),))
    _, piece, *_ = choice.push(0, TokenEvent(request_id="r", token=0, logprobs=odd))
    entry = piece.logprobs[0].to_dict()
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == FLOOR


def test_what_a_whole_reply_holds_is_none_of_the_garbage_collectors():
    """Beside 100,000s of entries with their alternatives, a collection stops everybody for 100s of ms."""
    choice = ChoiceText(Pieces([b"a"]), (), StopSearch(()), logprobs=True)
    scores = TokenLogprobs(chosen=-0.5, top=((0, -0.5),))
    (piece,) = (each for each in choice.push(0, event_of(0, scores)) if isinstance(each, Piece))
    assert piece.logprobs and not gc.is_tracked(piece.logprobs[0])
    folded = FoldedChoice([])
    folded.add_entries(piece.logprobs)
    assert folded.logprobs and not gc.is_tracked(folded.logprobs[0])
    assert json.loads(to_json(folded.to_dict(0)))["logprobs"]["content"] == [piece.logprobs[0].to_dict()]


def event_of(token, scores):
    return TokenEvent(request_id="r", token=token, logprobs=scores)
