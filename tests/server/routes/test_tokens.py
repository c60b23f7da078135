"""/tokenize and /detokenize in three shapes, told apart by a key."""

import pytest

from distaff.server.testing import BOS, TURN


def post(http, path, **body):
    return http.post(path, json=body)


def test_vllm(http):
    """Counted, with the names of tokens where they are wanted."""
    assert post(http, "/tokenize", model="tgi", prompt="aé").json() == {
        "count": 4,
        "max_model_len": 4096,
        "tokens": [BOS, 97, 195, 169],
        "token_strs": None,
    }
    told = post(http, "/tokenize", prompt="a", add_special_tokens=False, return_token_strs=True).json()
    assert told["tokens"] == [97] and told["token_strs"] == ["<|97|>"]


def test_a_conversation(http, ask):
    """As many as the chat completion says its prompt has, tools and options included."""
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "now"}}],
        "chat_template_kwargs": {"style": "old"},
    }
    told = post(http, "/tokenize", **body).json()
    assert told["count"] == ask(**body).json()["usage"]["prompt_tokens"] > 100
    plain = post(http, "/tokenize", messages=body["messages"]).json()
    assert plain["tokens"][0] == BOS and TURN in plain["tokens"] and plain["count"] < 20


def test_llama_cpp(http):
    assert post(http, "/tokenize", content="ab").json() == {"tokens": [97, 98]}
    assert post(http, "/tokenize", content="ab", add_special_tokens=True).json()["tokens"][0] == BOS


def test_llama_cpp_gets_pieces(http):
    """A token's text, or its bytes where they are none; special ones are named."""
    told = post(http, "/tokenize", content="aé", add_special=True, with_pieces=True).json()
    assert told["tokens"] == [
        {"id": BOS, "piece": "<|256|>"},
        {"id": 97, "piece": "a"},
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
    ]
    assert post(http, "/tokenize", content="a", add_special=False, parse_special=True).json() == {
        "tokens": [97]
    }


def test_tgi(http):
    """Each token with the characters that it makes certain."""
    assert post(http, "/tokenize", inputs="aé", add_special_tokens=False).json() == [
        {"id": 97, "text": "a", "start": 0, "stop": 1},
        {"id": 195, "text": "", "start": 1, "stop": 1},
        {"id": 169, "text": "é", "start": 1, "stop": 2},
    ]


@pytest.mark.parametrize("text", ["", "plain", "🙂 ü"])
def test_there_and_back(http, text):
    ids = post(http, "/tokenize", prompt=text).json()["tokens"]
    assert post(http, "/detokenize", tokens=ids).json() == {"prompt": text, "content": text}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ("/tokenize", {"content": "a", "parse_special": False}, "parse_special"),
        ("/tokenize", {"content": "a", "with_pieces": "yes"}, "with_pieces"),
        ("/tokenize", {"messages": [{"role": "user", "content": None}]}, "messages.[0].content"),
        ("/detokenize", {"tokens": [1], "skip_special_tokens": False}, "skip_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [259]}, "tokens"),
        ("/detokenize", {"tokens": "ab"}, "tokens"),
    ],
)
def test_faults(http, path, body, param):
    reply = post(http, path, **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})]
)
def test_another_model_is_not_found(http, path, body):
    reply = post(http, path, model="another", **body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_the_version(http):
    assert set(http.get("/version").json()) == {"version"}


def test_a_conversation_for_tgi(http):
    """What the template made of it, special tokens written out."""
    told = post(http, "/chat_tokenize", messages=[{"role": "user", "content": "hi"}]).json()
    assert told["templated_text"] == "<|256|>user:hi<|258|>"
    assert "".join(token["text"] for token in told["tokenize_response"]) == told["templated_text"]


def test_a_remote_tokenizer_finds_what_it_reads(http, engine):
    """In vLLM's shape: named tokens, null where there is none, the template, a class; ids by /tokenize."""
    told = http.get("/tokenizer_info").json()
    assert told == {
        "bos_token": "<|256|>",
        "eos_token": "<|257|>",
        "pad_token": None,
        "chat_template": "{{ messages }}",
        "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    engine.state = "loading"
    assert http.get("/tokenizer_info").status_code == 503
