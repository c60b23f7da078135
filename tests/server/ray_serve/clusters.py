"""A cluster of Ray with several nodes on this machine, and the application as its users deploy it."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from ...processes import wait_ended

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"

_MARK = "DISTAFF_TEST_CLUSTER"
"""An environment variable by which the processes of a cluster are known."""
_MEMORY = 80 << 20
"""Bytes of a node's object store."""
PATIENCE = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def until(condition: Callable[[], Any], patience: float = PATIENCE, every: float = 0.2) -> Any:
    """Waits until the condition holds; returns its value."""
    limit = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < limit, f"not within {patience} s"
        time.sleep(every)
    return found


class RayCluster:
    """Nodes, each with room for one replica (the resource `seat`); the first one also takes requests.

    Attributes:
      url: of the proxy, on the first node. api_key: unused by servers without keys.
    """

    def __init__(self, folder: Path, seats: tuple[int, ...]) -> None:
        """Starts the nodes."""
        from ray.cluster_utils import Cluster

        os.environ[_MARK] = secrets.token_hex(8)
        self._folder = folder
        self._port, self._dashboard = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.cluster = Cluster()
        self.nodes = [self._start(number, count) for number, count in enumerate(seats)]

    def _start(self, number: int, seats: int) -> Any:
        resources = {"seat": seats, f"node{number}": 1}
        head = {"include_dashboard": True, "dashboard_port": self._dashboard} if number == 0 else {}
        return self.cluster.add_node(num_cpus=8, resources=resources, object_store_memory=_MEMORY, **head)

    def deploy(self, arguments: dict[str, Any], **replica_options: Any) -> None:
        """`serve deploy` with these arguments of the application; waits until it runs."""
        ingress = {"name": "Ingress", "ray_actor_options": {"num_cpus": 0, "resources": {"node0": 0.1}}}
        overrides = [ingress, *([{"name": "Replica", **replica_options}] if replica_options else [])]
        application = {
            "name": "distaff",
            "route_prefix": "/",
            "import_path": "distaff.server.ray_serve.app:build",
            "args": {"cpus": 0, "resources": {"seat": 1}, **arguments},
            "deployments": overrides,
        }
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self._port},
            "applications": [application],
        }
        path = self._folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        address = f"http://127.0.0.1:{self._dashboard}"
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", address, str(path)]
        until(lambda: subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0)
        time.sleep(1)  # until the new configuration is what the status is of

    def status(self) -> dict[str, Any]:
        """The application's status."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"http://127.0.0.1:{self._dashboard}/api/serve/applications/", timeout=10)
            if answer.status_code == 200:
                return answer.json()["applications"].get("distaff", {})
        return {}

    def wait_running(self, replicas: int, patience: float = PATIENCE) -> None:
        """Waits until the application runs with this number of replicas."""
        until(lambda: self._runs(replicas), patience)

    def _runs(self, replicas: int) -> bool:
        status = self.status()
        assert status.get("status") != "DEPLOY_FAILED", status.get("message")
        return status.get("status") == "RUNNING" and len(self.replicas()) == replicas

    def replicas(self) -> list[dict[str, Any]]:
        """Ray Serve's description of each running replica."""
        found = self.status().get("deployments", {}).get("Replica", {}).get("replicas", [])
        return [replica for replica in found if replica["state"] == "RUNNING"]

    def node_with_replica(self) -> Any:
        """A node that can be lost and has a replica."""
        used = {replica["node_id"] for replica in self.replicas()}
        return next(node for node in self.nodes[1:] if node.node_id in used)

    def servers(self, module: str = "distaff.server.command.cli") -> list[psutil.Process]:
        """The server process of each replica, on any node, or the processes that run another module."""
        return [each for each in self._processes() if module in each.cmdline()]

    def busy_server(self) -> psutil.Process:
        """The server process of a replica that computes something."""
        running = self.metric("distaff_engine_running")
        actors = {replica["pid"] for replica in self.replicas() if running.get(replica["replica_id"])}
        return next(server for server in self.servers() if server.ppid() in actors)

    def metric(self, name: str) -> dict[str, float]:
        """A sample of each server's metrics, by the name of the server."""
        lines = httpx.get(f"{self.url}/metrics", timeout=20).text.splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return {labels.split('server="')[1].split('"')[0]: float(value) for labels, value in samples}

    def lose(self, node: Any) -> None:
        """Kills a node with all its processes, at once."""
        self.nodes.remove(node)
        for process in self._processes("RAY_NODE_ID", node.node_id):
            process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def add_node(self, seats: int) -> None:
        """Adds a node."""
        self.nodes.append(self._start(len(self.nodes), seats))

    def close(self) -> None:
        """Ends everything."""
        self.cluster.shutdown()
        assert not (left := wait_ended(self._processes(), 30)), [process.cmdline() for process in left]

    def _processes(self, name: str = _MARK, value: str = "") -> list[psutil.Process]:
        """Those of this cluster that have a variable of this value in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                ours = environment.get(_MARK) == os.environ[_MARK] and process.pid != os.getpid()
                if ours and environment.get(name) == (value or os.environ[_MARK]):
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_cluster(folder: Path, seats: tuple[int, ...]) -> Iterator[RayCluster]:
    """A cluster that is ended with the block."""
    cluster = RayCluster(folder, seats)
    try:
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def one_server(*flags: str) -> Iterator[str]:
    """`distaff serve` alone, without Ray; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "distaff.server.command.cli", "serve", "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _is_ready(url))
        yield url
    finally:
        process.terminate()
        process.wait(90)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    return False
