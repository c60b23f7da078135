"""The server that a batch is sent to: a running one, or one that is started for the batch."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager

from ...checkpoints.sources import check
from .api_address import ApiAddress, Unready
from .batch import DEFAULT_CONCURRENCY, Ask
from .line_client import LineClient
from .own_server import own_server

log = logging.getLogger(__name__)

_PATIENT = ("--max-wait", "3600")
"""An own server has no other clients, so its queue may be long."""
_LOADING_SECONDS = 1800.0
"""The longest wait for a server that loads its model, which may include the download."""
_POLL_SECONDS = 1.0


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
    """Raises Failed unless the server answers, accepts the key, and soon accepts requests."""
    _wait_until_ready(address)
    with closing(LineClient(address)) as client:
        yield client.ask, concurrency or client.slots() or DEFAULT_CONCURRENCY


def _wait_until_ready(address: ApiAddress) -> None:
    """Waits while the server loads its model. Raises Failed: see `ApiAddress.ask`."""
    limit, announced = time.monotonic() + _LOADING_SECONDS, False
    while True:
        try:
            address.model()
            return
        except Unready as error:
            if time.monotonic() > limit:
                raise
            if not announced:
                log.info("waiting for %s: %s", address.url, error)
            announced = True
            time.sleep(_POLL_SECONDS)
