"""What `kubectl kustomize` makes of `deploy/` is valid by the schemas that the projects have published.

Kubernetes: the package kubernetes-validate, strictly, that is, without unknown fields. KEDA and the Gateway
API: the npm packages of kubernetes-models, whose types TypeScript compares with the objects, and whose
functions check formats and limits. KServe: the classes of its SDK. LeaderWorkerSet, the Inference Extension
and llm-d publish no package with schemas: `SCHEMAS` has the fields and values of theirs that we use, read
from their sources by hand; the pods in them are checked as Kubernetes' own.
"""

import ast
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ..programs import NODE_PROGRAMS, node
from .manifests import (
    COMPONENTS,
    DEPLOY,
    OTHERS,
    OVERLAYS,
    PACKAGES,
    ROOT,
    Object,
    Renderer,
    objects,
    unpack_kubectl,
)

pytestmark = pytest.mark.clients

RELEASES = ("1.30", "1.37")
"""The oldest Kubernetes that knows all fields, and the newest that was published."""
MINE = "resources: [../deploy/{overlay}]\ncomponents: [{components}]\n"


def _fields(required: str = "", **properties: Any) -> Any:
    """The schema of an object without other fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


_TEXT, _NUMBER, _TEMPLATE = {"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "object"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_ENVELOPE = {"apiVersion": _TEXT, "kind": _TEXT, "metadata": _fields("name", name=_TEXT, labels=_TEXTS)}
_PORT = _fields("number", number={"type": "integer", "minimum": 1, "maximum": 65535})
_GROUP = _fields(
    "workerTemplate",
    leaderTemplate=_TEMPLATE,
    workerTemplate=_TEMPLATE,
    size=_NUMBER,
    restartPolicy={"enum": ["None", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart"]},
)
_PICKER = _fields(
    "name",
    name=_TEXT,
    group=_TEXT,
    kind=_TEXT,
    port=_PORT,
    failureMode={"enum": ["FailOpen", "FailClose"]},
)
_ENGINE = _fields(
    "name",
    name=_TEXT,
    queuedRequestsSpec=_TEXT,
    runningRequestsSpec=_TEXT,
    kvUsageSpec=_TEXT,
    cacheInfoSpec=_TEXT,
)
_PLUGIN = _fields(
    "type",
    name=_TEXT,
    type=_TEXT,
    parameters=_fields(
        "", engineLabelKey=_TEXT, defaultEngine=_TEXT, engineConfigs={"type": "array", "items": _ENGINE}
    ),
)
_PROFILE = _fields(
    "name plugins",
    name=_TEXT,
    plugins={"type": "array", "items": _fields("pluginRef", pluginRef=_TEXT, weight=_NUMBER)},
)
_SOURCE = _fields(
    "pluginRef",
    pluginRef=_TEXT,
    extractors={"type": "array", "items": _fields("pluginRef", pluginRef=_TEXT)},
)
SCHEMAS = {
    "leaderworkerset.x-k8s.io/v1 LeaderWorkerSet": _fields(
        "apiVersion kind metadata spec",
        **_ENVELOPE,
        spec=_fields("leaderWorkerTemplate", replicas=_NUMBER, leaderWorkerTemplate=_GROUP),
    ),
    "inference.networking.k8s.io/v1 InferencePool": _fields(
        "apiVersion kind metadata spec",
        **_ENVELOPE,
        spec=_fields(
            "selector targetPorts endpointPickerRef",
            selector=_fields("matchLabels", matchLabels=_TEXTS),
            targetPorts={"type": "array", "items": _PORT, "minItems": 1, "maxItems": 8},
            endpointPickerRef=_PICKER,
        ),
    ),
    "llm-d.ai/v1alpha1 EndpointPickerConfig": _fields(
        "apiVersion kind plugins schedulingProfiles",
        apiVersion=_TEXT,
        kind=_TEXT,
        plugins={"type": "array", "items": _PLUGIN},
        schedulingProfiles={"type": "array", "items": _PROFILE},
        dataLayer=_fields("", sources={"type": "array", "items": _SOURCE}),
    ),
}
TYPED = {
    "keda.sh/v1alpha1 ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
    "gateway.networking.k8s.io/v1 HTTPRoute": (
        "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute"
    ),
}


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_kubectl(tmp_path_factory.mktemp("kubectl"))


@pytest.fixture
def renderer(tmp_path: Path, kubectl: Path) -> Renderer:
    return Renderer(tmp_path, kubectl)


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[Object]], None]:
    """Checks objects by the schema of each kind; an AssertionError or ValidationError says what is wrong."""
    monkeypatch.syspath_prepend(str(PACKAGES))
    import kubernetes_validate

    def check(found: list[Object]) -> None:
        typed = []
        for each in found:
            kind = f"{each['apiVersion']} {each['kind']}"
            if kind in SCHEMAS:
                jsonschema.validate(each, SCHEMAS[kind])
            elif kind in TYPED:
                typed.append((TYPED[kind], each))
            elif each["kind"] == "ServingRuntime":
                check_class("V1alpha1ServingRuntime", each)
        for each in [inner for outer in found for inner in _of_kubernetes(outer)]:
            for release in RELEASES:
                kubernetes_validate.validate(each, release, strict=True)
        if typed:
            check_types(typed, tmp_path)

    return check


def _of_kubernetes(found: Object) -> Iterator[Object]:
    """The object if its kind is one of Kubernetes' own; else the pods inside of it, as objects."""
    name = f"{found['apiVersion']} {found['kind']}"
    metadata = {"name": "inner"}
    if found["kind"] == "LeaderWorkerSet":
        for role in ("leaderTemplate", "workerTemplate"):
            template = found["spec"]["leaderWorkerTemplate"][role]
            yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": template}
    elif found["kind"] == "ServingRuntime":
        pod = {name: found["spec"][name] for name in ("containers", "volumes")}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}
    elif name not in SCHEMAS and name not in TYPED:
        yield found


def check_types(typed: list[tuple[str, Object]], folder: Path) -> None:
    """Compiles the objects as values of the packages' types, and calls the packages' validation."""
    lines = []
    for number, (module, found) in enumerate(typed):
        kind = found["kind"]
        lines += [
            f'import {{ {kind} as K{number}, type I{kind} as T{number} }} from "{module}";',
            f"const o{number}: T{number} = {json.dumps(found)};",
            f"new K{number}(o{number}).validate();",
        ]
    (folder / "node_modules").unlink(missing_ok=True)
    (folder / "node_modules").symlink_to(NODE_PROGRAMS.parent)
    (folder / "objects.mts").write_text("\n".join(lines))
    compiler = NODE_PROGRAMS.parent / "typescript" / "bin" / "tsc"
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    for command in ([compiler, *options, "objects.mts"], ["objects.mts"]):
        done = subprocess.run(
            [node(), *command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            env={"HOME": str(folder)},
        )
        assert done.returncode == 0, done.stdout + done.stderr


def check_class(name: str, found: Object) -> None:
    """Compares an object's fields with those of a class of KServe's SDK, and of the classes inside of it."""
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).strip("_")
    source = (PACKAGES / "kserve" / "models" / f"{words}.py").read_text()
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    kinds = {tables["attribute_map"][field]: kind for field, kind in tables["openapi_types"].items()}
    assert set(found) <= set(kinds), name
    for field, value in found.items():
        _check_value(kinds[field], value, f"{name}.{field}")


def _check_value(kind: str, value: Any, place: str) -> None:
    if kind.startswith("list["):
        assert isinstance(value, list), place
        for each in value:
            _check_value(kind[5:-1], each, place)
    elif kind.startswith("V1alpha1"):
        check_class(kind, value)
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, f"{place} is {value!r}; expected {kind}"
    else:
        assert isinstance(value, dict), place  # of Kubernetes, which has a schema of its own


MADE = [
    (overlay, components)
    for overlay in OVERLAYS
    for components in ((), *((each,) for each in COMPONENTS), COMPONENTS)
]


@pytest.mark.parametrize(("overlay", "components"), MADE, ids=lambda value: str(value))
def test_overlays_with_components_are_valid(overlay, components, renderer: Renderer, validate):
    """Each kind of device, with and without scaling and a pool."""
    listed = ", ".join(f"../deploy/{name}" for name in components)
    found = renderer.render_text(MINE.format(overlay=overlay, components=listed))
    kinds = {each["kind"] for each in found}
    assert {"Deployment", "Service", "PodDisruptionBudget", "PersistentVolumeClaim"} <= kinds
    assert ("ScaledObject" in kinds, "InferencePool" in kinds) == (
        "scaling" in components,
        "gateway" in components,
    )
    [pod] = [each["spec"]["template"]["metadata"]["labels"] for each in found if each["kind"] == "Deployment"]
    for kind, selector in [(each["kind"], each["spec"].get("selector")) for each in found if "spec" in each]:
        if kind in ("Service", "PodDisruptionBudget", "InferencePool", "Deployment"):
            labels = selector if kind == "Service" else selector["matchLabels"]
            assert labels and labels.items() <= pod.items(), kind
    validate(found)


@pytest.mark.parametrize("name", OTHERS)
def test_other_folders_are_valid(name: str, renderer: Renderer, validate):
    """Several hosts, and KServe."""
    validate(renderer.render(name))


def test_the_configuration_of_a_picker_is_valid(validate):
    """It is no object of a cluster; its references lead to plugins that it has."""
    (picker,) = objects(DEPLOY / "llm-d" / "endpoint-picker.yaml")
    validate([picker])
    plugins = {each["type"] for each in picker["plugins"]}
    sources = picker["dataLayer"]["sources"]
    used = [each for profile in picker["schedulingProfiles"] for each in profile["plugins"]] + sources
    used += [each for source in sources for each in source["extractors"]]
    assert {each["pluginRef"] for each in used} == plugins


def test_the_example_of_the_documents_is_valid(renderer: Renderer, validate):
    """A user's own kustomization."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    (example,) = [block for block in text.split("```yaml\n")[1:] if "resources:" in block.partition("```")[0]]
    validate(renderer.render_text(example.partition("```")[0]))


CHANGES = [
    ("cpu", "base/deployment.yaml", "readinessProbe:", "readynessProbe:"),
    ("cpu", "base/deployment.yaml", "seconds: 5", "seconds: five"),
    ("cpu", "base/service.yaml", "targetPort:", "targetport:"),
    ("cpu", "base/disruption.yaml", "unhealthyPodEvictionPolicy:", "unhealthyEvictionPolicy:"),
    ("cpu", "cache/claim.yaml", "accessModes: [", "accessModes: ReadWriteMany #"),
    ("cpu", "scaling/scaled-object.yaml", "maxReplicaCount: 4", "maxReplicas: 4"),
    ("cpu", "scaling/scaled-object.yaml", "minReplicaCount: 1", "minReplicaCount: one"),
    ("cpu", "gateway/http-route.yaml", "request: 0s", "request: forever"),
    ("cpu", "gateway/http-route.yaml", "backendRefs:", "backends:"),
    ("cpu", "gateway/inference-pool.yaml", "targetPorts:", "targetPort:"),
    ("cpu", "gateway/inference-pool.yaml", "FailOpen", "Open"),
    ("hosts", "hosts/leader-worker-set.yaml", "restartPolicy:", "restart:"),
    ("hosts", "hosts/leader-worker-set.yaml", "volumeMounts:", "mounts:"),
    ("hosts", "hosts/network-policy.yaml", "podSelector:", "selector:"),
    ("kserve", "kserve/serving-runtime.yaml", "supportedModelFormats:", "modelFormats:"),
    ("kserve", "kserve/serving-runtime.yaml", "version:", "release:"),
    ("kserve", "kserve/serving-runtime.yaml", "containerPort: 8080", "containerPort: http"),
]


@pytest.mark.parametrize(("overlay", "file", "right", "wrong"), CHANGES, ids=lambda value: value)
def test_a_wrong_field_is_found(overlay, file, right, wrong, renderer: Renderer, validate):
    """Of every kind of object: a name or a value that its schema does not have."""
    changed = renderer.deploy / file
    assert right in changed.read_text()
    changed.write_text(changed.read_text().replace(right, wrong, 1))
    components = ", ".join(f"../deploy/{name}" for name in COMPONENTS if overlay in OVERLAYS)
    found = renderer.render_text(MINE.format(overlay=overlay, components=components))
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        validate(found)
