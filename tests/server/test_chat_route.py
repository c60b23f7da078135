"""Chat completions through real sockets: bytes as the protocol demands them, and the official client."""

HELLO = [{"role": "user", "content": "hi"}]


def test_answers_in_one_piece(client):
    reply = client.chat.completions.create(model="org/fake-model", messages=HELLO)
    assert reply.choices[0].message.content == "Hello, world!"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 13


def test_streams(client):
    chunks = list(client.chat.completions.create(model="tgi", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"
