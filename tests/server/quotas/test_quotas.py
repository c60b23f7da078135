"""What a key may use: laws of the window, and of admission and its retry times."""

from copy import deepcopy

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from distaff.server.errors import BadRequest, RateLimited
from distaff.server.quotas.key_settings import KeySettings
from distaff.server.quotas.quotas import Grant, Quotas, Standing
from distaff.server.quotas.rate_headers import anthropic_headers, duration, openai_headers
from distaff.server.quotas.window import SECONDS, Window

LIMIT = 10


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, LIMIT)), max_size=60), st.data())
def test_no_sixty_seconds_have_more_than_the_limit(arrivals, data):
    """Whenever an amount is added as soon as it fits; and it fits exactly when the wait says so."""
    window, now = Window(), 0.0
    added: list[tuple[float, int]] = []
    for pause, size in arrivals:
        now += pause
        wait = window.wait(size, LIMIT, now)
        if wait:
            assert deepcopy(window).wait(size, LIMIT, now + wait * 0.999) > 0
            if data.draw(st.booleans()):
                now += wait
        if not window.wait(size, LIMIT, now):
            window.add(size, now)
            added.append((now, size))
    for end, _ in added:
        assert sum(size for at, size in added if at <= end < at + SECONDS) <= LIMIT


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Rates(RuleBasedStateMachine):
    """Requests of one key, against lists of what was admitted."""

    @initialize(
        requests=st.none() | st.integers(1, 6),
        tokens=st.none() | st.integers(1, 60),
        concurrent=st.none() | st.integers(1, 4),
    )
    def start(self, requests: int | None, tokens: int | None, concurrent: int | None) -> None:
        self.clock = Clock()
        self.settings = KeySettings(
            requests_per_minute=requests, tokens_per_minute=tokens, concurrent=concurrent
        )
        self.quotas = Quotas(self.clock)
        self.running: list[tuple[Grant, list[float], int]] = []
        self.admitted: list[list[float]] = []
        self.late: list[list[float]] = []

    def used(self) -> list[list[float]]:
        """The requests admitted within the last minute: when, and their tokens."""
        return [each for each in self.admitted if each[0] > self.clock.now - SECONDS]

    def used_tokens(self) -> list[list[float]]:
        """The tokens of the last minute; also those that long requests generated beyond the limit."""
        late = [each for each in self.late if each[0] > self.clock.now - SECONDS]
        return [each for each in (*self.used(), *late) if each[1]]

    @rule(prompt=st.integers(1, 40), most=st.integers(0, 60))
    def send(self, prompt: int, most: int) -> None:
        limits, used = self.settings, self.used()
        limit = limits.tokens_per_minute
        size = prompt + most if limit is None else min(prompt + most, limit)
        if limit is not None and prompt > limit:
            with pytest.raises(BadRequest, match=f"may use {limit} tokens"):
                self.quotas.admit("k", limits, prompt, most)
            return
        fits = limits.requests_per_minute is None or len(used) < limits.requests_per_minute
        fits = fits and (limit is None or sum(tokens for _, tokens in self.used_tokens()) + size <= limit)
        fits = fits and (limits.concurrent is None or len(self.running) < limits.concurrent)
        if not fits:
            self.refused(prompt, most)
            return
        grant = self.quotas.admit("k", limits, prompt, most)
        self.admitted.append([self.clock.now, size])
        self.running.append((grant, self.admitted[-1], prompt + most))

    def refused(self, prompt: int, most: int) -> None:
        """The time holds for the rates if nothing else comes; without it the request is refused again."""
        with pytest.raises(RateLimited) as refused:
            self.quotas.admit("k", self.settings, prompt, most)
        error, alone = refused.value, len(self.running) < (self.settings.concurrent or 99)
        assert error.status == 429 and error.code == "rate_limit_exceeded"
        assert 0 < error.seconds <= SECONDS or error.type == "concurrent"
        assert error.seconds <= float(error.headers["retry-after"]) < error.seconds + 1
        assert error.seconds <= float(error.headers["retry-after-ms"]) / 1000 < error.seconds + 0.002
        if alone:
            self.clock.now += float(error.headers["retry-after-ms"]) / 1000
            self.send(prompt, most)
            assert self.admitted[-1][0] == self.clock.now

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 9), part=st.floats(0.0, 1.0))
    def end(self, place: int, part: float) -> None:
        grant, entry, most = self.running.pop(place % len(self.running))
        tokens = round(most * part)
        if entry in self.used():
            entry[1] = tokens
        elif tokens > entry[1]:
            self.late.append([self.clock.now, tokens - entry[1]])
        grant.close(tokens)

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 9))
    def cancel(self, place: int) -> None:
        grant, entry, _ = self.running.pop(place % len(self.running))
        grant.cancel()
        self.admitted = [each for each in self.admitted if each is not entry]

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def read(self) -> None:
        """What is left is the limit without what was used in the last minute."""
        used = self.used()
        left = {each.unit: each for each in self.quotas.standings("k", self.settings)}
        assert set(left) == {
            unit
            for unit, limit in (
                ("requests", self.settings.requests_per_minute),
                ("tokens", self.settings.tokens_per_minute),
            )
            if limit is not None
        }
        tokens = self.used_tokens()
        self.compare(left.get("requests"), len(used), used)
        self.compare(left.get("tokens"), sum(size for _, size in tokens), tokens)

    def compare(self, standing: Standing | None, used: float, amounts: list[list[float]]) -> None:
        """All is left again when the last amount leaves the window; at once if there is none."""
        if standing is not None:
            assert standing.remaining == max(0, standing.limit - used)
            last = max((at for at, _ in amounts), default=self.clock.now - SECONDS)
            assert standing.reset == pytest.approx(last + SECONDS - self.clock.now)


TestRates = Rates.TestCase


def test_keys_do_not_share_a_quota():
    quotas, settings = Quotas(Clock()), KeySettings(requests_per_minute=1, concurrent=1)
    quotas.admit("a", settings, 1, 1)
    quotas.admit("b", settings, 1, 1)
    for key in "ab":
        with pytest.raises(RateLimited):
            quotas.admit(key, settings, 1, 1)


def test_a_refusal_for_concurrency_says_when_a_request_usually_has_ended():
    clock = Clock()
    quotas, settings = Quotas(clock), KeySettings(concurrent=1)
    for _ in range(50):
        grant = quotas.admit("a", settings, 1, 1)
        clock.now += 20.0
        grant.close(2)
    quotas.admit("a", settings, 1, 1)
    clock.now += 5.0
    with pytest.raises(RateLimited, match="concurrent requests: Limit 1, In progress 1") as refused:
        quotas.admit("a", settings, 1, 1)
    assert refused.value.seconds == pytest.approx(15.0, abs=0.1)


def test_more_tokens_than_were_reserved_count():
    """Of a request that reserved the whole limit, because it could become longer than that."""
    clock = Clock()
    quotas, settings = Quotas(clock), KeySettings(tokens_per_minute=100)
    quotas.admit("a", settings, 10, 4000).close(250)
    clock.now = 59.0
    with pytest.raises(RateLimited, match="Limit 100, Used 250, Requested 2") as refused:
        quotas.admit("a", settings, 1, 1)
    assert refused.value.seconds == 1.0
    clock.now = 60.0
    quotas.admit("a", settings, 1, 1)


def test_tokens_beyond_the_limit_count_when_a_long_request_ends():
    """Of a request that took longer than a minute: from its end on, and each of them once."""
    clock = Clock()
    quotas, settings = Quotas(clock), KeySettings(tokens_per_minute=100)
    grant = quotas.admit("a", settings, 10, 4000)
    clock.now = 120.0
    grant.close(250)
    [left] = quotas.standings("a", settings)
    assert (left.remaining, left.reset) == (0, 60.0)
    with pytest.raises(RateLimited, match="Limit 100, Used 150, Requested 2") as refused:
        quotas.admit("a", settings, 1, 1)
    assert refused.value.seconds == 60.0


def test_requests_that_were_not_served_leave_nothing():
    clock = Clock()
    quotas, settings = Quotas(clock), KeySettings(requests_per_minute=5, tokens_per_minute=1000)
    for _ in range(100):
        quotas.admit("a", settings, 10, 10).cancel()
    assert [(each.remaining, each.reset) for each in quotas.standings("a", settings)] == [
        (5, 0.0),
        (1000, 0.0),
    ]
    assert not quotas._keys["a"].requests._amounts and not quotas._keys["a"].tokens._amounts


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0ms"),
        (0.0121, "13ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (372.25, "6m12.25s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds, written):
    assert duration(seconds) == written


def test_headers_name_what_is_left():
    clock = Clock()
    quotas, settings = Quotas(clock), KeySettings(requests_per_minute=3, tokens_per_minute=100)
    quotas.admit("a", settings, 20, 10)
    clock.now = 12.0
    standings = quotas.standings("a", settings)
    assert openai_headers(standings) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "48s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "48s",
    }
    assert anthropic_headers(standings, 1_700_000_000.5) == {
        "anthropic-ratelimit-requests-limit": "3",
        "anthropic-ratelimit-requests-remaining": "2",
        "anthropic-ratelimit-requests-reset": "2023-11-14T22:14:09Z",
        "anthropic-ratelimit-tokens-limit": "100",
        "anthropic-ratelimit-tokens-remaining": "70",
        "anthropic-ratelimit-tokens-reset": "2023-11-14T22:14:09Z",
    }


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.0, 50.0), st.booleans()), max_size=40))
def test_keys_that_are_no_longer_used_are_forgotten(admissions):
    """All that is kept belongs to keys with a request in progress, or one within the last two minutes."""
    clock = Clock()
    quotas, lately, running = Quotas(clock), {}, set()
    for number, pause, ends in admissions:
        clock.now += pause
        grant = quotas.admit(str(number), KeySettings(), 3, 4)
        lately[str(number)] = clock.now
        if ends:
            grant.close(5)
        else:
            running.add(str(number))
        recent = {key for key, at in lately.items() if at + 2 * SECONDS >= clock.now}
        assert set(quotas._keys) <= recent | running
        assert {key for key, at in lately.items() if at + SECONDS > clock.now} | running <= set(quotas._keys)
