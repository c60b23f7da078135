"""`distaff bench` against our own server with a fake engine: the table, the files, the ends."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distaff.server.command.cli import app, run
from distaff.server.keys import Keys

from ...patience import patient, wait_until
from ..conftest import MODEL, Server

STATISTICS = ("mean", "median", "std", "p99")
VLLM = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens"),
    *("total_output_tokens", "request_throughput", "request_goodput", "output_throughput"),
    *("total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{name}_{metric}_ms" for name in STATISTICS for metric in ("ttft", "tpot", "itl")),
}
"""What `vllm bench serve` writes into its JSON by default."""
DETAILED = {
    *("input_lens", "output_lens", "ttfts", "itls", "start_times", "queue_times", "latencies"),
    *("generated_texts", "errors"),
}
"""What it adds with `--save-detailed`."""
KEY = "a-key-of-the-test"
SMALL = ("--random-input-len", "10", "--random-output-len", "4", "--num-prompts", "6")


@pytest.fixture
def bench(server: Server, tmp_path: Path) -> Callable[..., tuple[int, Any]]:
    """Runs the command; returns its exit code and what it wrote, None if it wrote nothing."""

    def call(*words: str, url: str = server.url) -> tuple[int, Any]:
        path = tmp_path / "result.json"
        files = ["--result-dir", str(tmp_path), "--result-filename", path.name]
        code = run(lambda: app(["bench", "--base-url", url, *files, *words], standalone_mode=False))
        return code, json.loads(path.read_text()) if path.exists() else None

    return call


def test_one_load_is_written_as_vllm_writes_it(bench, server, capsys):
    """Under its names, with prompts and answers of exactly the requested lengths."""
    code, found = bench(*SMALL, "--goodput", "ttft:10000", "tpot:10000", "--save-detailed")
    assert code == 0 and set(found) >= VLLM | DETAILED
    assert (found["completed"], found["failed"], found["model_id"]) == (6, 0, MODEL)
    assert (found["input_lens"], found["output_lens"]) == ([10] * 6, [4] * 6)
    assert (found["request_rate"], found["max_concurrency"]) == ("inf", None)
    assert found["request_goodput"] == found["request_throughput"] > 0
    assert found["output_tokens_counted_by"] == "usage"
    assert {len(gaps) for gaps in found["itls"]} == {3} and found["generated_texts"][0] == "Hell"
    assert 0 < found["mean_ttft_ms"] <= found["mean_e2el_ms"] <= found["p99_e2el_including_client_queue_ms"]
    prompts = [tuple(request.prompt) for request in server.engine.requests]
    assert len(prompts) == len(set(prompts)) == 7  # with the one that checks the server
    out = capsys.readouterr().out
    assert f"{MODEL} at {server.url}/v1/completions" in out and "written: " in out
    for row in ("Request goodput (req/s)", "Median TTFT (ms)", "P99 ITL (ms)", "Client CPU"):
        assert row in out


def test_a_sweep_is_a_list_of_loads(bench, server, tmp_path, capsys):
    """With prompts of its own for each load, and a picture of all."""
    server.engine.cached, picture = 4, tmp_path / "sweep.png"
    code, found = bench(*SMALL, "--max-concurrency", "1,3", "--num-warmups", "2", "--plot", str(picture))
    assert code == 0 and [each["max_concurrency"] for each in found] == [1, 3]
    assert [each["max_concurrent_requests"] for each in found] == [1, 3]
    assert all(set(each) >= VLLM and not DETAILED & set(each) for each in found)
    prompts = {tuple(request.prompt) for request in server.engine.requests}
    assert len(server.engine.requests) == len(prompts) == 1 + 2 * (2 + 6)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    out = capsys.readouterr().out
    assert "max concurrency" in out and "note: at most 3 at a time: 40% of the input tokens" in out


def test_an_open_load_of_chats(bench, server, tmp_path, capsys):
    """Its queue is reported, and a picture has the distributions; words are counted by the server."""
    picture = tmp_path / "one.png"
    words = ("--backend", "openai-chat", "--request-rate", "200", "--burstiness", "2", "--plot", str(picture))
    code, found = bench(*SMALL, *words, "--percentile-metrics", "ttft,client_queue_time")
    assert code == 0 and found["endpoint"] == "/v1/chat/completions"
    assert found["request_rate"] == 200 and found["duration"] >= 6 / 200
    assert {"p99_client_queue_time_ms", "p99_ttft_ms"} <= set(found) and "p99_itl_ms" not in found
    assert found["total_input_tokens"] > 60 and found["ignore_eos"]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "200 req/s" in capsys.readouterr().out


def test_requests_have_the_given_parameters(bench, server, tmp_path, monkeypatch):
    """Of flags, of --extra-body, and of a file."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Why?"}\n')
    words = (
        "--dataset-name",
        "custom",
        "--dataset-path",
        str(path),
        "--output-len",
        "3",
        "--num-prompts",
        "2",
    )
    code, found = bench(*words, "--temperature", "0.5", "--extra-body", '{"top_p": 0.25}', "--model", "tgi")
    (params,) = {(r.params.temperature, r.params.top_p, r.params.max_tokens) for r in server.engine.requests}
    assert code == 0 and params == (0.5, 0.25, 3) and found["model_id"] == "tgi"
    assert not found["ignore_eos"] and found["total_output_tokens"] == 6


def test_failures_are_counted_by_kind(bench, server, capsys):
    """None is dropped; what succeeded has figures."""
    server.engine.capacity = 2
    server.engine.delay = 0.02
    code, found = bench(*SMALL)
    assert code == 0 and found["completed"] == 2 and found["failures"] == {"status 503": 4}
    assert found["failed"] == 4 and found["first_error"].startswith("status 503: ")
    out = capsys.readouterr().out
    assert "4 failed: 4 x status 503; the first: status 503" in out


def test_nothing_succeeded(bench, server, capsys):
    """The files are written and the code says so."""

    def reply_once(request: Any) -> bytes:
        if len(server.engine.requests) > 1:
            server.engine.error_after = 0
        return b"Hello"

    server.engine.reply = reply_once
    code, found = bench(*SMALL)
    out = capsys.readouterr()
    assert code == 69 and out.err == "distaff: no request succeeded\n"
    assert (found["completed"], found["failed"]) == (0, 6) and found["mean_ttft_ms"] is None
    assert "6 x error in the stream" in out.out


def test_what_limits_the_meaning_is_said(bench, server, capsys):
    """Cached prompts, and answers that are shorter than requested."""
    server.engine.cached = 5
    code, found = bench(*SMALL, "--extra-body", '{"stop_token_ids": [101]}')
    assert code == 0 and found["total_output_tokens"] < found["total_wanted_tokens"]
    out = capsys.readouterr().out
    assert "50% of the input tokens came from the server's prefix cache" in out
    assert "fewer tokens were generated than requested" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", "other"], 69, "status 404: The model `other` does not exist"),
        (["--random-input-len", "5000"], 69, "status 400: This model's maximum context length"),
        (["--endpoint", "/v2/completions"], 69, "status 404"),
        (["--endpoint", "/v1/responses"], 2, "ends with /completions"),
        (["--backend", "openai", "--endpoint", "/v1/chat/completions"], 2, "exclude each other"),
        (["--dataset-name", "custom"], 2, "needs --dataset-path"),
        (["--dataset-path", __file__], 2, "needs --dataset-name"),
        (["--max-concurrency", "1,0"], 2, "'1,0' is not a number above 0"),
        (["--request-rate", "0"], 2, "0 is not above 0"),
        (["--request-rate", "nan"], 2, "nan is not above 0"),
        (["--burstiness", "-1"], 2, "-1 is not above 0"),
        (["--goodput", "itl:3"], 2, "'itl:3' is not METRIC:MS"),
        (["--goodput", "ttft:3", "tpot:fast"], 2, "'tpot:fast' is not METRIC:MS"),
        (["ttft:3"], 2, "limits follow --goodput"),
        (["--metric-percentiles", "50,101"], 2, "'50,101' is not a number from 0 to 100"),
        (["--percentile-metrics", "ttft,ttfb"], 2, "'ttfb' is not one of ttft"),
        (["--header", "no value"], 2, "'no value' is not KEY=VALUE"),
        (["--header", "a=b\r\nc: d"], 2, "is not KEY=VALUE"),
        (["--extra-body", "[1]"], 2, "'[1]' is not a JSON object"),
        (["--plot", "picture.none"], 2, "--plot picture.none: expected a file of"),
        (["--plot", "/no/such/folder/a.png"], 2, "--plot /no/such/folder/a.png: its folder does not exist"),
    ],
)
def test_what_cannot_work_ends_at_once(bench, server, capsys, words, code, message):
    """With one line and the code of its kind, before the load."""
    found, _ = bench(*SMALL, *words)
    error = capsys.readouterr().err
    assert (found, message in error, error.count("\n")) == (code, True, 1), error
    assert not server.engine.requests


def test_no_server_is_said_at_once(bench, capsys):
    """Whether or not a model is named."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        for words in ([], ["--model", "m"], ["--model", "m", "--backend", "openai-chat"]):
            assert bench(*SMALL, *words, url=url) == (69, None)
            assert f"{url}" in (error := capsys.readouterr().err) and "onnect" in error


def test_keys_come_from_the_environment_or_a_header(bench, make_server, monkeypatch, capsys):
    """A wrong one ends the command at once."""
    server = make_server(keys=Keys([KEY]))
    server.engine.state = "ready"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert bench(*SMALL, url=server.url)[0] == 69
    assert "status 401" in capsys.readouterr().err
    assert bench(*SMALL, "--header", f"Authorization=Bearer {KEY}", url=server.url)[0] == 0
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert bench(*SMALL, "--base-url", f"{server.url}/v1/")[0] == 0
    monkeypatch.setenv("OPENAI_API_KEY", "key\n")
    assert bench(*SMALL, url=server.url)[0] == 2


def test_an_interrupt_shows_and_writes_what_has_ended(server, tmp_path):
    """And ends the sweep; the code is that of an interrupt."""
    server.engine.delay = 0.01
    command = [sys.executable, "-m", "distaff.server.command.cli", "bench", "--base-url", server.url, *SMALL]
    more = ["--num-prompts", "5000", "--max-concurrency", "2,4", "--result-filename", "result.json"]
    with subprocess.Popen(
        [*command, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: len(server.engine.requests) > 10 or process.poll(), patient(30))
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=patient(10))
        finally:
            process.kill()
    assert (process.returncode, error) == (130, "")
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["interrupted"] and found["max_concurrency"] == 2
    assert found["completed"] >= 7 and found["completed"] + found["unfinished"] == 5000
    assert "interrupted: " in out and "Median TTFT (ms)" in out
    wait_until(lambda: not server.engine.running, patient(5))
