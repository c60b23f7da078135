"""vLLM's names: each with its type and label on a running server, and its figures are ours."""

import re
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from distaff.runtime.request import EngineStats
from distaff.server.metrics import Metrics
from distaff.server.rising_sum import RisingSum
from distaff.server.testing import FakeEngine

from .conftest import MODEL, Ask, Server

TYPES = {
    "vllm:num_requests_waiting": "gauge",
    "vllm:num_requests_running": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:gpu_cache_usage_perc": "gauge",
    "vllm:cache_config_info": "gauge",
    "vllm:prefix_cache_hits": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:gpu_prefix_cache_hits": "counter",
    "vllm:gpu_prefix_cache_queries": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:num_preemptions": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
}
LABELS = {
    "vllm:cache_config_info": {"block_size", "num_gpu_blocks"},
    "vllm:request_success": {"model_name", "finished_reason"},
}


def families(text: str) -> dict[str, Metric]:
    """Each of vLLM's families, without those that say when a counter was created."""
    found = text_string_to_metric_families(text)
    return {
        each.name: each for each in found if each.name.startswith("vllm:") and "_created" not in each.name
    }


def scraped(http: httpx.Client) -> dict[str, Metric]:
    return families(http.get("/metrics").text)


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    """The value of the one sample of this name that has these labels."""
    (sample,) = (
        sample
        for family in found.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return sample.value


def ours(http: httpx.Client, name: str) -> float:
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def test_every_name_has_its_type_and_its_labels(http: httpx.Client) -> None:
    """Each family once, and nothing of a replica: those who add up replicas would count twice."""
    found = scraped(http)
    assert {name: family.type for name, family in found.items()} == TYPES
    for name, family in found.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == LABELS.get(name, {"model_name"}), name
        assert {s.labels["model_name"] for s in family.samples if "model_name" in s.labels} <= {MODEL}
    config = found["vllm:cache_config_info"].samples[0]
    assert (config.labels, config.value) == ({"block_size": "16", "num_gpu_blocks": "100"}, 1)
    reasons = {sample.labels["finished_reason"] for sample in found["vllm:request_success"].samples}
    assert reasons == {"stop", "length", "abort", "error"}


PAIRS = {
    "vllm:prompt_tokens_total": "distaff_prompt_tokens_total",
    "vllm:generation_tokens_total": "distaff_completion_tokens_total",
    "vllm:time_to_first_token_seconds_count": "distaff_time_to_first_token_seconds_count",
    "vllm:time_to_first_token_seconds_sum": "distaff_time_to_first_token_seconds_sum",
    "vllm:e2e_request_latency_seconds_count": "distaff_request_duration_seconds_count",
    "vllm:e2e_request_latency_seconds_sum": "distaff_request_duration_seconds_sum",
}


def test_after_some_requests_the_figures_are_ours(http: httpx.Client, ask: Ask, make_server) -> None:
    server = make_server()
    server.reset()
    server.engine.waited = 0.7
    with httpx.Client(base_url=server.url) as http:
        body = {"model": "tgi", "messages": [{"role": "user", "content": "hi"}]}
        for changes in ({}, {"stream": True}, {"n": 3, "max_tokens": 5}):
            assert http.post("/v1/chat/completions", json=body | changes).status_code == 200
        found = scraped(http)
        for theirs, name in PAIRS.items():
            assert value(found, theirs) == ours(http, name) > 0, theirs
    assert value(found, "vllm:generation_tokens_total") == 14 + 14 + 3 * 5
    for name in ("inter_token_latency", "time_per_output_token"):
        assert value(found, f"vllm:{name}_seconds_count") == 13 + 13 + 3 * 4
    assert value(found, "vllm:request_success_total", finished_reason="stop") == 2
    assert value(found, "vllm:request_success_total", finished_reason="length") == 3
    assert value(found, "vllm:request_queue_time_seconds_count") == 5
    assert value(found, "vllm:request_queue_time_seconds_sum") == pytest.approx(3.5)
    assert value(found, "vllm:request_queue_time_seconds_bucket", le="0.5") == 0
    assert value(found, "vllm:request_queue_time_seconds_bucket", le="0.8") == 5


def test_the_time_between_tokens(make_server: Callable[..., Server]) -> None:
    """Every interval is counted: 5 tokens, each at least 30 ms after the one before."""
    server = make_server()
    server.reset()
    server.engine.delay = 0.03
    with httpx.Client(base_url=server.url) as http:
        http.post("/v1/completions", json={"model": "tgi", "prompt": "a", "max_tokens": 5})
        found = scraped(http)
    assert value(found, "vllm:inter_token_latency_seconds_bucket", le="0.025") == 0
    assert value(found, "vllm:inter_token_latency_seconds_count") == 4
    assert value(found, "vllm:inter_token_latency_seconds_sum") >= 4 * 0.03


def test_a_failed_choice_is_an_error_and_a_lost_one_too(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.reset()
    with httpx.Client(base_url=server.url) as http:
        server.engine.error_after = 2
        assert http.post("/v1/completions", json={"model": "tgi", "prompt": "a"}).status_code == 500
        server.engine.error_after, server.engine.fail_after = None, 2
        assert http.post("/v1/completions", json={"model": "tgi", "prompt": "a", "n": 2}).status_code == 500
        found = scraped(http)
    assert value(found, "vllm:request_success_total", finished_reason="error") == 3
    assert value(found, "vllm:request_success_total", finished_reason="stop") == 0


class SomeEngine(FakeEngine):
    """An engine of several replicas with given snapshots."""

    def __init__(self, snapshots: list[EngineStats], waiting: int) -> None:
        self.snapshots: list[EngineStats] = snapshots
        super().__init__()
        self.queued = (waiting, 0)

    @property
    def replicas(self) -> list[FakeEngine]:
        return [SomeEngine([each], 0) for each in self.snapshots]

    @property
    def stats(self) -> EngineStats:
        return EngineStats.total(self.snapshots)


numbers = st.integers(0, 10**6)


@st.composite
def snapshots(draw: st.DrawFn) -> EngineStats:
    total = draw(st.integers(0, 1000))
    names = ("waiting", "running", "preemptions", "prompt_tokens", "cached_tokens")
    figures = {name: draw(numbers) for name in names}
    return EngineStats(**figures, total_pages=total, free_pages=draw(st.integers(0, total)))


@given(st.lists(snapshots(), min_size=1, max_size=3), st.integers(0, 1000))
def test_the_sums_are_those_of_ours(drawn: list[EngineStats], queued: int) -> None:
    text = Metrics(SomeEngine(drawn, queued), "m").render().decode()
    theirs = families(text)

    def engines(name: str) -> float:
        return sum(map(float, re.findall(rf"^distaff_engine_{name}{{.*}} (\S+)$", text, re.MULTILINE)))

    assert value(theirs, "vllm:num_requests_waiting") == engines("waiting") + queued
    assert value(theirs, "vllm:num_requests_running") == engines("running")
    assert value(theirs, "vllm:num_preemptions_total") == engines("preemptions_total")
    cached = engines("cached_tokens_total")
    for prefix in ("vllm:", "vllm:gpu_"):
        assert value(theirs, f"{prefix}prefix_cache_hits_total") == cached
        queries = value(theirs, f"{prefix}prefix_cache_queries_total")
        assert queries == engines("prompt_tokens_total") + cached
    total, free = engines("total_pages"), engines("free_pages")
    for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
        assert value(theirs, name) == ((total - free) / total if total else 0)
    assert ("vllm:cache_config_info" in theirs) == (total > 0)
    if total:
        assert value(theirs, "vllm:cache_config_info", num_gpu_blocks=str(int(total))) == 1


@given(st.lists(st.tuples(st.integers(0, 2), numbers, st.booleans()), max_size=30))
def test_a_sum_over_restarting_engines_is_that_of_what_they_counted(events) -> None:
    """Each engine counts on, or restarts at 0 and counts; the sum is looked at after each."""
    total, values, counted = RisingSum(), [0, 0, 0], 0
    for engine, more, restarts in events:
        if restarts:
            values[engine] = 0
            total.of(values)
        values[engine] += more
        counted += more
        assert total.of(values) == counted
