"""`Replica`: Ray Serve's deployment of one whole Distaff server, or of one over several hosts.

The actor starts the server on its node, is ready when the server is, and passes requests on. When the server
ends by itself the actor ends too: Ray Serve then starts another one where the devices are, and the ingresses
continue the streams elsewhere. When the actor ends, the server ends with it.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence

import ray
from ray import serve

from .. import exit_codes
from ..answering.resuming import VARIABLE as RESUME_KEY
from ..command.exposure import check_exposure
from ..command.listener import listen
from ..keys import configured_keys
from .arguments import parse_flags
from .call import Accepted, Call, Headers, Piece, ReplicaLost
from .child import ServerChild
from .followers import Followers
from .health import Health
from .loopback import Loopback

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_HEALTH_SECONDS = 5.0
_HOST = "127.0.0.1"
_ANYWHERE = "0.0.0.0"


class Replica:
    """A server and the actor that supervises it."""

    async def __init__(self, words: Sequence[str], hosts: int, reserved: dict[str, float]) -> None:
        """Starts the server and waits until it is ready.

        Args:
          words: the flags of `distaff serve`. hosts, reserved: see `Followers`.

        Raises:
          ReplicaLost: the server did not start; the message is its own.
        """
        flags = parse_flags(words)
        check_exposure(_ANYWHERE, configured_keys(flags.api_keys, os.environ), flags.auth)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._stopping = False
        resume_key, port = secrets.token_urlsafe(32), _free_port(_HOST)
        shared = [*words, *_membership(hosts)]
        own = ["--host", _HOST, "--port", str(port)]
        self._child = ServerChild([*shared, *own], {RESUME_KEY: resume_key})
        self._followers = Followers(shared, hosts, reserved)
        self._loopback = Loopback(port, resume_key)
        while await self._loopback.status("/ready", _HEALTH_SECONDS) != 200:
            if self._child.ended:
                raise ReplicaLost(f"the server did not start: {await self._child.wait()}")
            await asyncio.sleep(_POLL_SECONDS)
        self._health = Health(time.monotonic())
        self._watch = asyncio.create_task(self._end_with_child())

    async def ask(self, call: Call) -> AsyncIterator[Piece]:
        """The pieces of the server's answer; see `call.py`."""
        yield Accepted(self._id)
        async for piece in self._loopback.ask(call):
            yield piece

    async def metrics(self, headers: Headers) -> tuple[str, int, str]:
        """This replica's id, and the status and the text of its metrics."""
        status, text = await self._loopback.metrics(headers)
        return self._id, status, text.decode()

    async def check_health(self) -> None:
        """Ray Serve calls this periodically, and replaces the replica if it fails.

        Raises:
          ReplicaLost: see `Health.record`.
        """
        status = await self._loopback.status("/health", _HEALTH_SECONDS)
        self._health.record(status, time.monotonic())

    async def __del__(self) -> None:
        """Ray Serve calls this when it stops the replica, after its requests have ended."""
        self._stopping = True
        await self._child.stop()
        await self._followers.wait()
        await self._loopback.close()

    async def _end_with_child(self) -> None:
        reason = await self._child.wait()
        if not self._stopping:
            log.error("the server has ended, and the replica ends with it: %s", reason)
            os._exit(exit_codes.ENGINE_LOST)


def _membership(hosts: int) -> list[str]:
    """The flags that join several processes to one model; the leader's node is where they meet."""
    if hosts == 1:
        return []
    host = ray.util.get_node_ip_address()
    return ["--coordinator", f"{host}:{_free_port(host)}", "--num-processes", str(hosts)]


def _free_port(host: str) -> int:
    with listen(host, 0) as free:
        return free.getsockname()[1]
