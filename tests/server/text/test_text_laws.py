"""Text is right to the byte, over HTTP, with real vocabularies: byte-level and SentencePiece's byte fallback.

The engine says the ids that a test gives it; the tokenizers are those of the `tokenizers` library, which is
the witness of what ids mean.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.checkpoints.tokenizer import ChatTokenizer

from ...checkpoints.test_tokenizer import PARTS
from ..conftest import MODEL

TEXTS = {name: ChatTokenizer(parts) for name, parts in PARTS.items()}
TYPED = ["</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "<tool>", "<0x41>", "[/INST]", "▁the"]

words = st.text() | st.lists(
    st.sampled_from(
        ["the dog", " is", "  a", "Hello", "é", "🙂", "👩‍👩‍👧", "世界", "\u2028", "\x85", "\0", "\n", *TYPED]
    )
).map("".join)
vocabularies = pytest.mark.parametrize("name", TEXTS)
drawn = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def say(server, http):
    """Has the engine say some ids to a request; the answer whole, and the events of a stream."""

    def said(name, ids, path="/v1/chat/completions", **body):
        server.served.text = TEXTS[name]
        server.engine.info = replace(server.engine.info, vocabulary=400)
        server.engine.reply = ids
        body = {"model": MODEL, "max_tokens": len(ids), "ignore_eos": True} | body
        whole = http.post(path, json=body)
        assert whole.status_code == 200, whole.text
        streamed = http.post(path, json=body | {"stream": True}).content.decode()
        *events, done, nothing = streamed.split("\n\n")
        assert (done, nothing) == ("data: [DONE]", "")
        return whole.json(), [json.loads(event.removeprefix("data: ")) for event in events]

    return said


def asked(**changes):
    return {"messages": [{"role": "user", "content": "Hello"}], "logprobs": True} | changes


def told(entries):
    """The bytes of log-probabilities."""
    return b"".join(bytes(entry["bytes"] or ()) for entry in entries)


def of_chat(whole, events):
    """The content and its bytes, which are the same whole and streamed, in pieces that are never empty; each
    token that is counted has an entry."""
    [choice], pieces = whole["choices"], [event["choices"][0] for event in events]
    content = choice["message"]["content"]
    texts = [piece["delta"]["content"] for piece in pieces[1:-1]]
    assert all(texts) and "".join(texts) == content
    entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
    assert entries == choice["logprobs"]["content"]
    assert len(entries) == whole["usage"]["completion_tokens"]
    assert choice["finish_reason"] == pieces[-1]["finish_reason"]
    return content, told(entries)


@vocabularies
@drawn
@given(text=words)
def test_any_text_is_said(say, server, name, text):
    """It comes as the library decodes it behind the prompt, and no piece of it holds half a character."""
    ids = TEXTS[name].encode(text, add_special_tokens=False) or [5]
    whole, events = say(name, ids, **asked())
    content, data = of_chat(whole, events)
    prompt, tokenizer = list(server.engine.requests[-1].prompt), PARTS[name].tokenizer
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    assert before + content == tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
    assert data == content.encode()
    assert "\ufffd" in text or not any("\ufffd" in str(event) for event in events)


@vocabularies
@drawn
@given(ids=st.lists(st.integers(3, 300), min_size=1, max_size=12))
def test_any_ids_are_said(say, name, ids):
    """Broken characters too: what they are is in the bytes, what can be shown is in the text."""
    content, data = of_chat(*say(name, ids, **asked()))
    assert data.decode(errors="replace") == content


@vocabularies
@drawn
@given(data=st.data(), text=words, shown=st.booleans())
def test_ids_without_a_token_write_nothing(say, name, data, text, shown):
    """As in the library, special tokens shown or not; wherever they come, the text is what it would be."""
    text_ids = TEXTS[name].encode(text, add_special_tokens=False) or [5]
    missing = st.integers(TEXTS[name].vocabulary, 399)
    assert PARTS[name].tokenizer.decode([data.draw(missing)], skip_special_tokens=False) == ""
    ids = [token for each in text_ids for token in (each, *data.draw(st.lists(missing, max_size=2)))]
    options = asked(skip_special_tokens=not shown)
    content, _ = of_chat(*say(name, ids, **options))
    assert content == of_chat(*say(name, text_ids, **options))[0]


@vocabularies
@drawn
@given(data=st.data(), text=words.filter(bool))
def test_a_stop_string_is_where_the_text_ends(say, name, data, text):
    """The first of any that occurs, wherever its tokens begin; none of it is sent, and no entry is lost."""
    ids = TEXTS[name].encode(text, add_special_tokens=False) or [5]
    full, _ = of_chat(*say(name, ids, **asked()))
    places = st.tuples(st.integers(0, max(len(full) - 1, 0)), st.integers(1, 5))
    cuts = data.draw(st.lists(places, min_size=1, max_size=3))
    stops = list({full[at : at + size] or "no such text" for at, size in cuts})
    whole, events = say(name, ids, **asked(stop=stops))
    content, raw = of_chat(whole, events)
    ends = [full.find(stop) for stop in stops if stop in full]
    assert content == full[: min(ends, default=len(full))]
    assert raw == content.encode()
    assert whole["choices"][0]["finish_reason"] == ("stop" if ends else "length")


@vocabularies
@drawn
@given(prompt=words.filter(bool), text=words)
def test_a_completion_goes_on_where_its_prompt_ends(say, server, name, prompt, text):
    """Prompt and text are one decoded text, spaces and all; echoed, the prompt comes back as it was."""
    ids = TEXTS[name].encode(text, add_special_tokens=False) or [5]
    body = {"path": "/v1/completions", "prompt": prompt, "logprobs": 1}
    whole, events = say(name, ids, **body)
    said = whole["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in events) == said
    given_, tokenizer = list(server.engine.requests[-1].prompt), PARTS[name].tokenizer
    before = tokenizer.decode(given_, skip_special_tokens=True)
    assert before + said == tokenizer.decode([*given_, *ids], skip_special_tokens=True)
    echoed, _ = say(name, ids, **body | {"echo": True, "logprobs": None})
    assert echoed["choices"][0]["text"] == prompt + said


@vocabularies
@drawn
@given(parts=st.lists(st.sampled_from(TYPED) | st.text(max_size=3), max_size=6))
def test_special_tokens_that_a_user_types_are_text(say, server, http, name, parts):
    """None of their ids reaches the engine but the template's own, and /tokenize says the same."""
    special = TEXTS[name].special_ids

    def specials(content):
        messages = [{"role": "user", "content": content}]
        say(name, [5], messages=messages)
        prompt = list(server.engine.requests[-1].prompt)
        assert http.post("/tokenize", json={"messages": messages}).json()["tokens"] == prompt
        return [token for token in prompt if token in special], prompt

    found, prompt = specials("".join(parts))
    assert found == specials("Hello")[0]
    shown, typed = TEXTS[name].decode(prompt), "".join(parts).strip()
    assert typed.replace("▁", " ") in shown.replace("▁", " ")  # which SentencePiece cannot tell apart


@vocabularies
@drawn
@given(text=words)
def test_tgis_tokens_are_its_text(http, server, name, text):
    """Joined, the texts of the events are the generated text."""
    ids = TEXTS[name].encode(text, add_special_tokens=False) or [5]
    server.served.text, server.engine.reply = TEXTS[name], ids
    server.engine.info = replace(server.engine.info, vocabulary=400)
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": len(ids), "details": True}}
    streamed = http.post("/generate_stream", json=body).content.decode().split("\n\n")[:-1]
    events = [json.loads(event.removeprefix("data:")) for event in streamed]
    joined = "".join(event["token"]["text"] for event in events if not event["token"]["special"])
    assert (
        joined == events[-1]["generated_text"] == http.post("/generate", json=body).json()["generated_text"]
    )
