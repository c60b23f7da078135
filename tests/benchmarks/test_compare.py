"""A comparison of several servers."""

from argparse import Namespace
from collections.abc import Iterator

import pytest

from benchmarks import compare
from benchmarks.figures import MACHINE


def test_a_server_that_ends_takes_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures so far are kept, the message has the reason, and the round goes on."""

    def measure(server: str, *_) -> Iterator[tuple[str, int, str, float]]:
        yield "start", 0, "seconds", 1.0
        if server == "broken":
            raise RuntimeError("the server ended with code -4")
        yield "chat", 1, "tokens_per_second", 5.0

    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(compare, "limits", lambda: [("bandwidth", 2.0)])
    arguments = Namespace(rounds=2, servers=["first", "broken", "last"], loads=["chat"], streams=[1])
    found = [(figure.round, figure.server) for figure in compare._all(arguments)]
    once = ["first", "first", "broken", "last", "last", MACHINE]
    assert found == [(number, server) for number in (1, 2) for server in once]
    assert "round 2: broken has no more figures: the server ended with code -4" in capsys.readouterr().out
