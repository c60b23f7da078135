"""The application on a cluster of three nodes: lost nodes, scaling, updates, and clients that notice nothing.

The model is the trials' tiny one. Its servers are deterministic, so a stream that went on elsewhere must be
equal to one that was not interrupted.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from benchmarks.trials.tiny import tiny_model

from .clusters import RayCluster, one_server, ray_cluster, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

RUNNING = "distaff_engine_running"
SLOTS = 16
FLAGS = ["--auth", "none", "--slots", str(SLOTS), "--context", "4096", "--max-wait", "120"]


def flags(*more: str) -> list[str]:
    return [str(tiny_model().resolve()), *FLAGS, *more]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), seats=(1, 1, 1)) as cluster:
        yield cluster


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1/", api_key="-", max_retries=0, timeout=120, _strict_response_validation=True
    )


def asking(text: str, tokens: int) -> dict[str, Any]:
    return {
        "model": "tgi",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": 7,
        "extra_body": {"ignore_eos": True},
    }


async def streamed(client: openai.AsyncOpenAI, text: str, tokens: int, heard: list[str]) -> str:
    """A streamed answer, whose pieces are added to `heard` as they come."""
    async for chunk in await client.chat.completions.create(**asking(text, tokens), stream=True):
        heard += [choice.delta.content or "" for choice in chunk.choices]
    return "".join(heard)


async def answered(client: openai.AsyncOpenAI, text: str, tokens: int) -> str:
    """A whole answer."""
    answer = await client.chat.completions.create(**asking(text, tokens))
    assert answer.usage and answer.usage.completion_tokens == tokens
    return answer.choices[0].message.content or ""


async def begun(heard: list[list[str]]) -> None:
    """Waits until all streams have said something."""
    async with asyncio.timeout(60):
        while not all(len(pieces) > 20 for pieces in heard):
            await asyncio.sleep(0.01)


async def test_conversations_find_their_prefix_as_on_one_server(cluster: RayCluster) -> None:
    """32 conversations of 8 turns; at least nine tenths of one server's rate of cached tokens."""
    with one_server(*flags()) as url:
        alone = await hit_rate(url)
    cluster.deploy({"flags": flags(), "replicas": 3})
    await asyncio.to_thread(cluster.wait_running, 3)
    over_ray = await hit_rate(cluster.url)
    used = await asyncio.to_thread(cluster.metric, "distaff_prompt_tokens_total")
    assert len(used) == 3 and all(used.values()), "a replica has computed nothing"
    assert over_ray >= 0.9 * alone > 0.5


async def hit_rate(url: str) -> float:
    async with client_of(url) as client:
        tokens = await asyncio.gather(*(converse(client, number) for number in range(32)))
    return sum(cached for cached, _ in tokens) / sum(prompt for _, prompt in tokens)


async def converse(client: openai.AsyncOpenAI, number: int) -> tuple[int, int]:
    """Cached tokens and tokens of the prompts of one conversation; all share a system prompt."""
    messages: list[Any] = [{"role": "system", "content": "You answer briefly and in full sentences. " * 3}]
    cached = prompt = 0
    for turn in range(8):
        messages.append({"role": "user", "content": f"Conversation {number}, question {turn}. " * 3})
        answer = await client.chat.completions.create(
            model="tgi", messages=messages, max_tokens=24, extra_body={"ignore_eos": True}
        )
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        assert answer.usage and answer.usage.prompt_tokens_details
        cached += answer.usage.prompt_tokens_details.cached_tokens or 0
        prompt += answer.usage.prompt_tokens
    return cached, prompt


async def test_a_client_that_goes_away_is_noticed_within_a_second(cluster: RayCluster) -> None:
    """Its sequence is aborted in the engine, streamed or not."""
    for stream in (True, False):
        async with client_of(cluster.url) as client:
            heard: list[str] = []
            ask = streamed(client, "for ever", 3500, heard) if stream else answered(client, "for ever", 3500)
            task = asyncio.create_task(ask)
            await running(cluster, 1)
            task.cancel()
            begin = time.monotonic()
            await running(cluster, 0)
            assert time.monotonic() - begin < 1.0


async def running(cluster: RayCluster, expected: int) -> None:
    """Waits until the engines have this many running sequences."""
    async with asyncio.timeout(30):
        while sum((await asyncio.to_thread(cluster.metric, RUNNING)).values()) != expected:
            await asyncio.sleep(0.02)


async def test_an_update_drops_no_stream(cluster: RayCluster) -> None:
    """Another configuration replaces all replicas while streams and whole answers run."""
    before = {replica["replica_id"] for replica in cluster.replicas()}
    async with client_of(cluster.url) as client:
        heard: list[list[str]] = [[] for _ in range(6)]
        texts = [f"{number}: tell me a story" for number in range(6)]
        asked = [
            asyncio.create_task(streamed(client, text, 1500, pieces))
            for text, pieces in zip(texts, heard, strict=True)
        ]
        await begun(heard)
        await asyncio.to_thread(cluster.deploy, {"flags": flags("--alias", "other"), "replicas": 3})
        short = 0
        while not await asyncio.to_thread(updated, cluster, before):
            await answered(client, f"short {short}", 8)
            short += 1
        await asyncio.gather(*asked)
        models = [model.id async for model in client.models.list()]
    assert all(len(pieces) > 1000 for pieces in heard) and short > 0
    assert "other" in models


def updated(cluster: RayCluster, before: set[str]) -> bool:
    now = {replica["replica_id"] for replica in cluster.replicas()}
    return len(now) == 3 and not now & before


async def test_streams_of_a_lost_node_go_on_elsewhere(cluster: RayCluster) -> None:
    """To the token; whole answers come as well; and the replica is back by itself."""
    cluster.deploy({"flags": flags("--deterministic"), "replicas": 2})
    await asyncio.to_thread(cluster.wait_running, 2)
    texts = [f"{number}: tell me a story" for number in range(6)]
    async with client_of(cluster.url) as client:
        whole = await asyncio.gather(*(streamed(client, text, 600, []) for text in texts))
        heard: list[list[str]] = [[] for _ in texts]
        streams = [
            asyncio.create_task(streamed(client, text, 600, pieces))
            for text, pieces in zip(texts, heard, strict=True)
        ]
        answers = [asyncio.create_task(answered(client, text, 600)) for text in texts]
        await begun(heard)
        assert not any(task.done() for task in (*streams, *answers)), "the answers were too short"
        await asyncio.to_thread(cluster.lose, cluster.node_with_replica())
        assert await asyncio.gather(*streams) == whole
        assert await asyncio.gather(*answers) == whole
    await asyncio.to_thread(cluster.wait_running, 2)
    cluster.add_node(seats=1)


async def test_streams_of_a_lost_server_go_on_elsewhere(cluster: RayCluster) -> None:
    """Only the server's process is killed; its actor ends, and another one takes its place."""
    async with client_of(cluster.url) as client:
        whole = await streamed(client, "tell me a story", 600, [])
        before = {replica["replica_id"] for replica in cluster.replicas()}
        heard: list[str] = []
        stream = asyncio.create_task(streamed(client, "tell me a story", 600, heard))
        await begun([heard])
        busy = await asyncio.to_thread(cluster.busy_server)
        busy.kill()
        assert await stream == whole
    await asyncio.to_thread(until, lambda: len({r["replica_id"] for r in cluster.replicas()} - before) == 1)


async def test_replicas_follow_the_load(cluster: RayCluster) -> None:
    """From one to three and back, while every answer arrives."""
    scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4}
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 3, "metrics_interval_s": 1, "look_back_period_s": 2}
    cluster.deploy({"flags": flags(), "autoscaling": {**scaling, **delays}})
    await asyncio.to_thread(cluster.wait_running, 1)
    async with client_of(cluster.url) as client:
        load = [asyncio.create_task(keep_asking(client, number)) for number in range(16)]
        await asyncio.to_thread(cluster.wait_running, 3)
        for task in load:
            task.cancel()
        ended = await asyncio.gather(*load, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
        short = asyncio.create_task(keep_asking(client, 0, tokens=8))
        await asyncio.to_thread(cluster.wait_running, 1)
        assert not short.done(), short
        short.cancel()


async def keep_asking(client: openai.AsyncOpenAI, number: int, tokens: int = 200) -> None:
    for turn in range(1_000_000):
        await streamed(client, f"{number} {turn}", tokens, [])


async def test_one_model_over_two_nodes(cluster: RayCluster) -> None:
    """It answers; when one of its processes is lost all end, and the group is back by itself."""
    fewest = ["--slots", "1", "--context", "128", "--kv-pages", "16", "--prefill-tokens", "16"]
    words = [str(tiny_model().resolve()), "--auth", "none", "--mesh", "model=2", *fewest]
    cluster.deploy({"flags": words, "hosts": 2})
    await asyncio.to_thread(cluster.wait_running, 1, 300)
    async with client_of(cluster.url) as client:
        text = await answered(client, "hi", 8)
        (follower,) = cluster.servers("distaff.server.worker.follower")
        follower.kill()
        await asyncio.to_thread(until, lambda: not cluster.replicas())
        await asyncio.to_thread(cluster.wait_running, 1, 300)
        assert await answered(client, "hi", 8) == text


def test_a_wrong_flag_is_refused_before_anything_is_deployed(cluster: RayCluster) -> None:
    """`serve deploy` reports what the command line of `distaff serve` would say."""
    cluster.deploy({"flags": flags("--no-such-flag")})
    status = until(lambda: (found := cluster.status()).get("status") == "DEPLOY_FAILED" and found)
    assert "flags of distaff serve: No such option: --no-such-flag" in status["message"]


def test_an_open_server_must_be_asked_for(cluster: RayCluster) -> None:
    """Nobody here knows who can reach Ray Serve's proxies, so a replica needs keys or `--auth none`."""
    cluster.deploy({"flags": [str(tiny_model().resolve())]})
    status = until(lambda: (found := cluster.status()).get("status") == "DEPLOY_FAILED" and found)
    assert "no API keys are set" in str(status)
