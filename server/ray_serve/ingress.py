"""`Ingress`: Ray Serve's deployment around an `IngressApp`; it reaches replicas by a handle."""

import asyncio
from collections.abc import AsyncGenerator

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from .call import Call, Headers, NoReplica, Piece, ReplicaLost
from .ingress_app import IngressApp
from .merged_metrics import merged
from .relay import Patience

_METRICS_SECONDS = 10.0


@serve.ingress()
class Ingress:
    """Holds clients' connections. Has no model, and needs no device."""

    def __init__(self, replicas: DeploymentHandle, patience: Patience) -> None:
        """Args:
        replicas: a handle of the deployment of `Replica`.
        """
        self._replicas, self._patience = replicas, patience

    def __serve_build_asgi_app__(self) -> IngressApp:
        """The application to serve; Ray Serve calls this once."""
        return IngressApp(self._ask, self._metrics, self._patience)

    async def _ask(self, call: Call, seconds: float) -> AsyncGenerator[Piece, None]:
        """The pieces of a replica's answer; see `relay.Ask`."""
        answer = self._replicas.options(stream=True).ask.remote(call)
        try:
            yield await asyncio.wait_for(anext(answer), max(seconds, 0.0))
            async for piece in answer:
                yield piece
        except (ReplicaLost, RayTaskError):
            raise  # by the replica itself; what is not ReplicaLost is a defect
        except (TimeoutError, RayServeException) as error:
            raise NoReplica(f"no replica took the request: {error}") from error
        except RayError as error:
            raise ReplicaLost(f"the replica is gone: {type(error).__name__}") from error
        finally:
            answer.cancel()

    async def _metrics(self, headers: Headers) -> bytes:
        """The merged metrics of the replicas that answer."""
        asked = self._replicas.broadcast("metrics", headers)
        found = await asked.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        texts = [each for each in found if not isinstance(each, BaseException)]
        return await asyncio.to_thread(merged, {id: text for id, status, text in texts if status == 200})
