"""`Health`: whether a server must be replaced, from what it has answered to `GET /health` so far.

A server that answers 503 has an engine that is silent. It restarts its engines itself and continues their
streams, which a new server would have to compute again, so it has a minute for that. No Ray, no clock.
"""

from .call import ReplicaLost

PATIENCE_SECONDS = 60.0
"""How long `/health` may be something other than 200."""


class Health:
    """The health of one server."""

    def __init__(self, now: float) -> None:
        """The server is well now; times are in seconds."""
        self._well = now

    def record(self, status: int, now: float) -> None:
        """Records the status of an answer; 0 for none.

        Raises:
          ReplicaLost: there was no answer, or no 200 for too long.
        """
        if status == 200:
            self._well = now
        elif not status:
            raise ReplicaLost("GET /health is not answered")
        elif now - self._well > PATIENCE_SECONDS:
            raise ReplicaLost(f"GET /health is {status} since {now - self._well:.0f} s; expected 200")
