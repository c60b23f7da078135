"""`UsageMetrics`: what the keys have used, for Prometheus.

The label is a key's name in the keys file, so clients cannot add labels; calls of all other keys and without
a key are counted together.
"""

from prometheus_client import CollectorRegistry, Counter

from ..protocol.usage import Usage

UNNAMED = "-"

_FIGURES = {
    "requests": "Calls that have ended.",
    "prompt_tokens": "Tokens in prompts.",
    "cached_tokens": "Of these, tokens that were in the cache.",
    "completion_tokens": "Tokens generated.",
    "device_seconds": "Shares of the time of steps.",
    "page_seconds": "Pages of the KV pool, times the seconds of the steps for which they were held.",
}


class UsageMetrics:
    """Counters by the name of the key."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = {
            name: Counter(f"distaff_usage_{name}", text, ["key"], registry=registry)
            for name, text in _FIGURES.items()
        }

    def count(self, name: str, usage: Usage) -> None:
        """Counts a call of the key with this name; empty if it has none."""
        figures = {
            "requests": 1,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.completion,
            "device_seconds": usage.resources.device_seconds,
            "page_seconds": usage.resources.page_seconds,
        }
        for figure, value in figures.items():
            self._counters[figure].labels(name or UNNAMED).inc(value)
