"""The server that a batch is sent to: a running one, or one that is started for the batch."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress

from ...checkpoints.sources import check
from .api_address import ApiAddress, Unready
from .batch import DEFAULT_CONCURRENCY, Ask
from .line_client import LineClient
from .own_server import own_server

log = logging.getLogger(__name__)

_PATIENT = ("--max-wait", "3600")
"""An own server has no other clients, so its queue may be long."""


def batch_client(
    model: str | None, url: str | None, flags: Sequence[str], concurrency: int | None
) -> Callable[[], AbstractContextManager[tuple[Ask, int]]]:
    """What opens a client: it starts a server for `model`, with `flags`, unless there is a `url`.

    Raises:
      Failed: see `ApiAddress`. CheckpointError: there is no such model.
    """
    if url:
        address = ApiAddress(url, os.environ.get("DISTAFF_API_KEY"))
        return lambda: _opened(address, concurrency)
    check(model)
    return lambda: _started(model, flags, concurrency)


@contextmanager
def _started(model: str | None, flags: Sequence[str], concurrency: int | None) -> Iterator[tuple[Ask, int]]:
    log.info("starting a server for %s", model or "the bundled model")
    with own_server(model, (*_PATIENT, *flags)) as (address, key):
        with _opened(ApiAddress(address, key), concurrency) as opened:
            yield opened


@contextmanager
def _opened(address: ApiAddress, concurrency: int | None) -> Iterator[tuple[Ask, int]]:
    """Raises Failed unless the server answers and accepts the key.

    It may still be loading its model: a line that is refused for that is sent again.
    """
    with suppress(Unready):
        address.model()
    with closing(LineClient(address)) as client:
        yield client.ask, concurrency or client.slots() or DEFAULT_CONCURRENCY
