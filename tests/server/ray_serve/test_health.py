"""When Ray Serve is told to replace a server."""

import pytest

from distaff.server.ray_serve.call import ReplicaLost
from distaff.server.ray_serve.health import PATIENCE_SECONDS, Health


def test_a_server_may_restart_its_engines_for_a_while() -> None:
    health = Health(100.0)
    health.record(503, 100.0 + PATIENCE_SECONDS)
    health.record(200, 200.0)
    health.record(503, 200.0 + PATIENCE_SECONDS)
    with pytest.raises(ReplicaLost, match="503 since 61 s"):
        health.record(503, 201.0 + PATIENCE_SECONDS)


def test_a_server_that_does_not_answer_is_lost_at_once() -> None:
    with pytest.raises(ReplicaLost, match="not answered"):
        Health(0.0).record(0, 1.0)
