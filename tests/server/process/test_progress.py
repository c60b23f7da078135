"""Progress where there is no terminal: a line when a phase begins, and then one every few seconds."""

import pytest

from distaff.server.process.progress import LINE_SECONDS, Lines


def test_a_line_every_few_seconds(caplog: pytest.LogCaptureFixture):
    """A minute of news, ten a second, with a second phase half-way."""
    now = 0.0
    lines = Lines(clock=lambda: now)
    with caplog.at_level("INFO", "distaff.server.process.progress"):
        for tenth in range(600):
            now = tenth / 10
            lines.show("verify" if tenth < 300 else "load", tenth, 600)
    assert len(caplog.messages) == 2 * 30 / LINE_SECONDS
    assert caplog.messages[0] == "verify: 0 bytes of 600 bytes"
    assert [line.split(":")[0] for line in caplog.messages] == ["verify"] * 6 + ["load"] * 6


def test_quick_phases_are_a_line_each(caplog: pytest.LogCaptureFixture):
    lines = Lines(clock=lambda: 0.0)
    with caplog.at_level("INFO", "distaff.server.process.progress"):
        for phase in ("verify", "load", "compile"):
            for done in range(1, 100):
                lines.show(phase, done, 99)
    assert caplog.messages == ["verify: 1 byte of 99 bytes", "load: 1 byte of 99 bytes", "compile: 1 of 99"]
