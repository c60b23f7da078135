"""The files of `deploy/` say what the server and the image have: flags, ports, routes, metrics, times, users.

They are read as they are. `test_schemas.py` renders them and holds them to the schemas of Kubernetes.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from distaff.server import settings
from distaff.server.answering.authorization import OPEN_PATHS
from distaff.server.command.cli import app as command_line
from distaff.server.command.exposure import check_exposure
from distaff.server.flags import ServeFlags
from distaff.server.keys import Keys
from distaff.server.metrics import Metrics
from distaff.server.testing import FakeEngine
from distaff.server.worker import follower

from .manifests import DEPLOY, OVERLAYS, ROOT, Object, containers, files, named, objects, values

SERVE = typer.main.get_command(command_line).commands["serve"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IN_CLUSTER = {
    "$(MODEL)": "org/name",
    "$(LWS_LEADER_ADDRESS)": "distaff-0.distaff.default",
    "$(LWS_GROUP_SIZE)": "2",
    "$(LWS_WORKER_INDEX)": "1",
    "{{.Name}}": "llama",
}
"""What stands for each variable when a container starts."""


def filled(argument: str) -> str:
    for variable, value in IN_CLUSTER.items():
        argument = argument.replace(variable, value)
    assert "$(" not in argument and "{{" not in argument, argument
    return argument


def strings(path: Path) -> list[str]:
    return [each for each in values(objects(path)) if isinstance(each, str)]


def all_containers() -> Iterator[tuple[str, Object]]:
    """Every container with the name of its file; an overlay's has the fields of the base that it keeps."""
    (base,) = containers(objects(DEPLOY / "base" / "deployment.yaml"))
    for path in files():
        kept = base if path.parent.name in OVERLAYS else {}
        for found in containers(objects(path)):
            yield path.relative_to(DEPLOY).as_posix(), kept | found


ALL = list(all_containers())
STARTED = [pytest.param(found, id=name) for name, found in ALL if "args" in found]
PROBED = [pytest.param(found, id=name) for name, found in ALL if "readinessProbe" in found]


def parsed(container: Object) -> ServeFlags:
    command, *words = [filled(each) for each in container["args"]]
    assert (container["command"], command) == (["distaff"], "serve")
    return ServeFlags(**SERVE.make_context("serve", words).params)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_every_flag_is_one_of_serve(path: Path):
    """Also in patches, which are no whole command line."""
    known = {name for parameter in SERVE.params for name in parameter.opts}
    given = {each.partition("=")[0] for each in strings(path) if each.startswith("--")}
    assert given <= known


@pytest.mark.parametrize("container", STARTED)
def test_the_server_accepts_the_arguments(container: Object):
    """Their values, their combination, and keys or their absence on an address that others can reach."""
    flags = parsed(container)
    flags.check_together()
    check_exposure(flags.host, Keys(["a-key-of-a-pod"]) if flags.api_keys else None, flags.auth)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert flags.api_keys is None or str(flags.api_keys.parent) in mounts


def test_a_pool_asks_for_no_keys():
    """The patch replaces the argument with the keys of every overlay, wherever it stands, and no other."""
    test, replace, label = objects(DEPLOY / "gateway" / "deployment-patch.yaml")[0]
    assert test["path"] == replace["path"] and replace["value"] == "--auth=none"
    place = int(test["path"].rpartition("/")[2])
    overlays = [container for name, container in ALL if name.endswith("/deployment.yaml")]
    assert {container["args"][place] for container in overlays} == {test["value"]}
    assert len(overlays) == 1 + len(OVERLAYS)
    (picker,) = objects(DEPLOY / "llm-d" / "endpoint-picker.yaml")
    engines = [
        each["name"] for each in values(picker) if isinstance(each, dict) and "queuedRequestsSpec" in each
    ]
    assert engines == [label["value"]] and label["path"].endswith("/llm-d.ai~1engine-type")


@pytest.mark.parametrize("container", PROBED)
def test_probes_ask_what_needs_no_key_at_the_servers_port(container: Object):
    """A start may take long; later, traffic depends on readiness, and life on health alone."""
    probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert set(paths.values()) <= OPEN_PATHS
    for probe in probes.values():
        asked = probe["httpGet"]["port"]
        assert ports.get(asked, asked) == parsed(container).port
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 1800


def test_every_port_is_the_servers():
    """Of services, the pool, policies and annotations."""
    (serving,) = containers(objects(DEPLOY / "base" / "deployment.yaml"))
    port = parsed(serving).port
    assert f"EXPOSE {port}\n" in DOCKERFILE
    service, pool, policy, hosts = (
        objects(DEPLOY / name)[0]
        for name in (
            "base/service.yaml",
            "gateway/inference-pool.yaml",
            "hosts/network-policy.yaml",
            "hosts/service.yaml",
        )
    )
    assert service["spec"]["ports"][0]["targetPort"] in {each["name"] for each in serving["ports"]}
    assert pool["spec"]["targetPorts"] == [{"number": port}]
    assert [each["port"] for rule in policy["spec"]["ingress"] for each in rule.get("ports", ())] == [port]
    assert hosts["spec"]["ports"][0]["targetPort"] == port
    (runtime,) = objects(DEPLOY / "kserve" / "serving-runtime.yaml")
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(port)


def test_every_metric_exists():
    """In queries, and in what an endpoint picker reads."""
    families = Metrics(FakeEngine(), "a model").registry.collect()
    exported = {sample.name for family in families for sample in family.samples}
    named = {
        name
        for path in files()
        for text in strings(path)
        for name in re.findall(r"(?:distaff_|vllm:)\w+", text)
    }
    assert named and named <= exported


def pods() -> list[Any]:
    """The pod of the Deployment, and the two of a LeaderWorkerSet: leader and worker."""
    deployment = named("Deployment", objects(DEPLOY / "base" / "deployment.yaml"))
    group = named("LeaderWorkerSet", objects(DEPLOY / "hosts" / "leader-worker-set.yaml"))
    template = group["spec"]["leaderWorkerTemplate"]
    templates = deployment["spec"]["template"], template["leaderTemplate"], template["workerTemplate"]
    return [each["spec"] for each in templates]


def test_a_pod_has_time_to_drain():
    """After the pause in which proxies learn of its end; a follower outlives its leader."""
    single, leader, worker = pods()
    drain = settings.ServerSettings(model="").drain_seconds
    for pod in (single, leader):
        (container,) = pod["containers"]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause + drain + 10 <= pod["terminationGracePeriodSeconds"]
        assert pause + drain < follower._GOODBYE_SECONDS
    assert follower._GOODBYE_SECONDS + 10 <= worker["terminationGracePeriodSeconds"]


def test_a_worker_is_a_leader_without_http():
    """What is compiled in all processes of a mesh must be equal."""
    _, leader, worker = pods()
    http = {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"}
    (leads,), (follows,) = leader.pop("containers"), worker.pop("containers")
    assert leader == worker
    assert {name: value for name, value in leads.items() if name not in http} == follows


def test_pods_run_as_the_images_user_and_write_where_they_may():
    """The root is read-only; the image's folder for caches and /tmp are not."""
    user = int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[0])
    (data,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    for pod in pods():
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (user, True)
    for _, container in ALL:
        if "args" in container:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
            assert {data, "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
