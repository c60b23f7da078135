"""The figures of the loads, with a known clock and server."""

import json

import httpx
import pytest

from benchmarks import load
from benchmarks.load import Reply, gaps_during, send, summarise
from distaff.checkpoints import load_tokenizer, resolve


def test_gaps_that_reach_over_the_ends_of_the_window_count():
    """A stall that began before the prompt arrived, or ends after its answer, still counts."""
    times = [0.0, 1.0, 5.0, 5.5, 9.0, 9.1]
    assert gaps_during(times, 4.0, 6.0) == [4.0, 0.5, 3.5]
    assert gaps_during(times, 1.2, 1.3) == [4.0]
    assert gaps_during([3.0], 0.0, 9.0) == []


def test_a_load_sums_up_its_replies():
    """Tokens over the whole time; the time per token counts tokens after the first one."""
    replies = [Reply(first=1.0, total=3.0, prompt_tokens=10, tokens=5)] * 3
    result = summarise(2, [*replies, Reply(first=2.0, total=2.0, prompt_tokens=30, tokens=1)], 4.0)
    assert (result.streams, result.requests, result.tokens_per_second) == (2, 4, 4.0)
    assert (result.ttft_p50, result.ttft_p95, result.prompt_tokens) == (1.0, 2.0, 15.0)
    assert (result.time_per_token_p50, result.time_per_token_p95) == (0.5, 0.5)


def events(*chunks: dict) -> httpx.MockTransport:
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx.MockTransport(lambda _: httpx.Response(200, text=text))


async def replied(transport: httpx.MockTransport) -> Reply:
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await send(client, {})


async def test_a_reply_without_text_has_its_first_token_at_the_end():
    """Not at zero, which would be the best value."""
    reply = await replied(events({"choices": [{"delta": {"role": "assistant"}}]}))
    assert reply.first == reply.total > 0 and reply.tokens == 0


async def test_tokens_are_the_servers_count_or_ours():
    """A piece of text may hold several tokens."""
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("The capital", " of France")]
    counted = await replied(events(*pieces, {"choices": [], "usage": {"completion_tokens": 7}}))
    assert counted.tokens == 7 and counted.text == "The capital of France"
    assert (await replied(events(*pieces))).tokens == 4


async def test_a_refusal_fails_the_load():
    """With the server's message."""
    transport = httpx.MockTransport(lambda _: httpx.Response(429, text="too many"))
    with pytest.raises(RuntimeError, match=r"429.*too many"):
        await replied(transport)


@pytest.mark.parametrize("tokens", [1500, 4000])
def test_a_long_question_is_as_long_as_it_says(tokens):
    """Counted with the model's tokenizer and template."""
    tokenizer = load_tokenizer(resolve(None))
    prompt = tokenizer.encode_chat(load._begun(load.long_question(3, tokens)))
    assert abs(len(prompt) - tokens) <= 20
