"""Freed memory goes back to the system, from time to time."""

import pytest

from distaff.model import host_memory


def test_memory_is_given_back_whenever_some_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(host_memory, "_give_back", lambda: given.append(True))
    freed, counts = host_memory.Freed(), []
    for _ in range(6):
        freed.add(24 << 20)
        counts.append(len(given))
    assert counts == [0, 0, 1, 1, 1, 2]


def test_giving_back_is_harmless_at_any_time() -> None:
    """Also where the C library cannot do it."""
    host_memory.Freed().add(1 << 40)
