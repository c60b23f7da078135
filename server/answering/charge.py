"""`Charge`: what one submitted call costs its key, from its admission to its end.

Takes from the key's quota before the call is submitted, and at its end gives back what was not used, counts
its usage in the metrics of the key, and writes a line to the log of usage. Tokens count when they arrive from
the engines, so a client that reads slowly or ends its answer by a stop string pays for unread ones.
`quotas/` has the rules, `usage/` the counters and the file.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ...runtime.request import Request
from ..call_record import CallRecord
from ..errors import RateLimited
from ..protocol.usage import Usage
from ..quotas.quotas import Grant
from ..text.generation import Generation
from ..usage.usage_log import UsageLine
from .context import ApiRequest

USAGE_HEADER = "x-distaff-usage"
"""With it, whatever its value, a request asks for its device-seconds and so on in the usage of its answer."""


class Charge:
    """The charge of one call; `close` or `cancel` it once.

    Attributes:
      generation: the submitted sequences; None if they generate nothing.
    """

    def __init__(self, request: ApiRequest, grant: Grant | None) -> None:
        self.generation: Generation | None = None
        self._request = request
        self._grant = grant

    def cancel(self) -> None:
        """Takes it back: the call was not accepted."""
        if self._grant is not None:
            self._grant.cancel()

    def close(self, usage: Usage, record: CallRecord) -> None:
        """Records what the call has used; `usage`: as in its answer, without tokens that nobody read."""
        if self.generation is not None:
            usage = replace(usage, completion=max(usage.completion, self.generation.generated))
        if self._grant is not None:
            self._grant.close(usage.prompt + usage.completion)
        context = self._request.app.ctx
        name = self._request.key_settings.name
        context.usage.count(name, usage)
        if context.usage_log is not None:
            context.usage_log.write(self._line(name, usage, record))

    def _line(self, name: str, usage: Usage, record: CallRecord) -> UsageLine:
        request, resources = self._request, usage.resources
        return UsageLine(
            time=time.time(),
            request_id=request.reference,
            key=request.key_id,
            name=name,
            model=request.app.ctx.settings.model,
            route=request.path,
            priority=request.priority,
            batch=request.background,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            device_seconds=resources.device_seconds,
            page_seconds=resources.page_seconds,
            queue_seconds=resources.queue_seconds,
            first_token_seconds=record.first_token_seconds,
            seconds=time.perf_counter() - request.started,
            finish=record.reasons,
        )


def admit(request: ApiRequest, requests: Sequence[Request], prompt_tokens: int) -> Charge:
    """Admits a call that will be submitted as these sequences, by the quota of its key.

    Lines of batches take nothing from a quota: they run on what everybody leaves idle. Neither do
    resumed streams: they took it on the server that was lost.

    Raises:
      RateLimited: not now. BadRequest: it alone is more than the key may use.
    """
    settings, context = request.key_settings, request.app.ctx
    if request.background or request.resumption is not None or not request.key_id:
        return Charge(request, None)
    most = sum(_most_generated(each, context.engine_info().context) for each in requests)
    try:
        return Charge(request, context.quotas.admit(request.key_id, settings, prompt_tokens, most))
    except RateLimited:
        context.metrics.count_ending("rate_limited")
        raise


def _most_generated(request: Request, context: int) -> int:
    """The most tokens that a sequence may have; those of a text that is only scored are not generated."""
    most = request.params.max_tokens
    room = context - len(request.prompt)
    return 0 if request.params.pool_prompt else room if most is None else min(most, room)


@contextmanager
def charged(charge: Charge, usage: Callable[[], Usage], record: CallRecord) -> Iterator[None]:
    """Closes a charge at the end of the block, however that comes."""
    try:
        yield
    finally:
        charge.close(usage(), record)
