"""`Ingress` over a handle that raises what Ray does: which errors are a lost replica, and which a defect."""

import asyncio
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings(action="ignore"):  # Ray's own
    pytest.importorskip("ray.serve", reason="the extra `ray` installs it")

from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from distaff.server.ray_serve import ingress
from distaff.server.ray_serve.call import Accepted, Call, NoReplica, ReplicaLost

pytestmark = pytest.mark.ray

CALL = Call("GET", "/v1/models", [])


def raised(cause: Exception) -> Exception:
    """An exception in a replica, as its callers get it."""
    error = RayTaskError("ask", "its traceback", cause, pid=1, ip="127.0.0.1", proctitle="replica")
    return error.as_instanceof_cause()


class Answer:
    """A replica's answer, or its end."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces, self.cancelled = iter(pieces), False

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Any:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            return piece
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


def ingress_over(answer: Answer) -> Any:
    ask = SimpleNamespace(remote=lambda call: answer)
    handle = SimpleNamespace(options=lambda **_: SimpleNamespace(ask=ask))
    return SimpleNamespace(_replicas=handle)


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (ActorDiedError(), ReplicaLost),
        (raised(ReplicaLost("the server's answer broke off")), ReplicaLost),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), NoReplica),
        (TimeoutError(), NoReplica),
        (raised(KeyError("a defect")), KeyError),
        (raised(TimeoutError("a defect")), RayTaskError),
    ],
    ids=["died", "lost", "full", "late", "defect", "late defect"],
)
@pytest.mark.parametrize("accepted", [[], [Accepted("a")]], ids=["at once", "later"])
async def test_errors_mean_what_they_are(accepted: list, error: Exception, becomes: type) -> None:
    answer = Answer(*accepted, error)
    with pytest.raises(becomes) as found:
        async for _ in ingress.Ingress._ask(ingress_over(answer), CALL, 5.0):
            pass
    assert becomes is not KeyError or not isinstance(found.value, ReplicaLost)
    assert answer.cancelled


async def test_metrics_are_merged_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of samples take half a second."""
    threads: list[threading.Thread] = []

    def merged(texts: dict[str, str]) -> bytes:
        threads.append(threading.current_thread())
        return repr(texts).encode()

    async def results(**_: Any) -> list[Any]:
        await asyncio.sleep(0)
        return [("a", 200, "x"), ("b", 401, "y"), ActorDiedError()]

    monkeypatch.setattr(ingress, "merged", merged)
    handle = SimpleNamespace(broadcast=lambda *_: SimpleNamespace(results_async=results))
    text = await ingress.Ingress._metrics(SimpleNamespace(_replicas=handle), [])
    assert text == b"{'a': 'x'}" and threads != [threading.current_thread()]
