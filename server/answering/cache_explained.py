"""The header `x-distaff-cache`: what the prefix cache had of a prompt, and why not more.

A request asks for it with the same header, whatever its value. The engine knows the reason with the first
event, so a stream that explains begins only then. Of several prompts the first one is explained.
"""

from collections.abc import Sequence

from ..text.choice import ChoiceText
from .context import ApiRequest

CACHE_HEADER = "x-distaff-cache"

_REASONS = {
    "new": "nothing has followed this prefix before",
    "changed": "other prompts with this prefix differ in this page",
    "evicted": "its pages were evicted",
    "scored": "prompts whose tokens are scored are computed whole",
    "off": "the prefix cache is off",
}


def explains(request: ApiRequest) -> bool:
    """Whether the request asks for the header."""
    return CACHE_HEADER in request.headers


def cache_header(request: ApiRequest, choices: Sequence[ChoiceText]) -> dict[str, str]:
    """The header, if the request asks for it and an event has arrived."""
    first = choices[0].first
    if first is None or not explains(request):
        return {}
    if first.miss is None:
        return {CACHE_HEADER: f"hit {first.cached_tokens} tokens"}
    return {CACHE_HEADER: f"miss at token {first.miss.at}: {_REASONS[first.miss.reason]}"}
