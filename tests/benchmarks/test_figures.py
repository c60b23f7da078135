"""How the figures of several rounds are combined."""

import io

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.figures import Figure, Figures, bandwidth_ceiling


def rates(server: str, *values: float, name: str = "tokens_per_second") -> list[Figure]:
    return [Figure(n, server, "chat", 1, name, value) for n, value in enumerate(values, start=1)]


def test_a_ratio_is_of_rounds_and_not_of_medians():
    """The rounds' ratios are 2, 2 and 0.5; the ratio of the medians would be 10 to 10."""
    found = Figures(rates("distaff-f32", 20, 2, 10) + rates("llama-f32", 10, 1, 20))
    assert found.ratios("distaff-f32", "llama-f32", "chat", 1, "tokens_per_second") == [0.5, 2, 2]
    assert found.get("distaff-f32", "chat", 1, "tokens_per_second") == 10


def test_rounds_without_the_peer_are_left_out():
    """A server that failed in a round has no ratio there."""
    found = Figures(rates("distaff-f32", 20, 30, 40) + rates("llama-f32", 10)[:1])
    assert found.ratios("distaff-f32", "llama-f32", "chat", 1, "tokens_per_second") == [2]
    assert found.ratios("distaff-f32", "nobody", "chat", 1, "tokens_per_second") == []
    assert found.get("nobody", "chat", 1, "tokens_per_second") is None


def test_prefill_is_prompt_tokens_over_the_time_to_the_first():
    """In each round by itself."""
    figures = rates("a", 1000, 500, name="prompt_tokens") + rates("a", 2.0, 0.5, name="ttft_p50")
    assert Figures(figures).rounds("a", "chat", 1, "prefill") == {1: 500, 2: 1000}


@pytest.mark.parametrize(
    ("read", "pace", "ceiling", "who"),
    [(50e9, 0.02, 50e9, "the read test"), (50e9, 0.005, 80e9, "llama-f32")],
)
def test_no_server_exceeds_the_bandwidth_ceiling(read, pace, ceiling, who):
    """If the read test was slower than a server's reading of its weights, the server is the limit."""
    machine = [
        Figure(1, "machine", "limits", 0, "read_bytes_per_second", read / 2),
        Figure(2, "machine", "limits", 0, "read_bytes_per_second", read),
        Figure(1, "machine", "limits", 0, "parameters_decode", 1e8),
    ]
    servers = rates("llama-f32", 9.0, pace, name="time_per_token_p50") + rates(
        "llama-q8", 1e-9, name="time_per_token_p50"
    )
    found = Figures(machine + servers)
    assert bandwidth_ceiling(found) == (ceiling, who)


def test_the_tables_show_what_was_measured(monkeypatch, tmp_path):
    """One line for each server and number of streams, the verdict on a target, and a plot."""
    out = io.StringIO()
    monkeypatch.setattr(report, "Console", lambda width: Console(width=width, file=out))
    figures = rates("distaff-f32", 30.0, 33.0) + rates("llama-f32", 20.0, 30.0)
    for name in ("ttft_p50", "ttft_p95", "time_per_token_p50", "time_per_token_p95", "prompt_tokens"):
        figures += rates("distaff-f32", 0.25, 0.25, name=name) + rates("llama-f32", 0.5, 0.5, name=name)
    report.show(Figures(figures))
    report.draw(Figures(figures), tmp_path)
    assert "31.5 (30.0-33.0)" in out.getvalue() and "250 / 250" in out.getvalue()
    assert "1.30 (1.10-1.50)" in out.getvalue() and "met" in out.getvalue()
    assert (tmp_path / "chat.png").stat().st_size > 1000
