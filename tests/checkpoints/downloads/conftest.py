"""A hub on the loopback interface, with one repository, and the hub's client in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..making import make_model, save_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/tiny"
CODE = """
import os, sys
from pathlib import Path
from huggingface_hub import constants
from distaff.checkpoints import resolve
from distaff.model.errors import DistaffError
constants.DOWNLOAD_CHUNK_SIZE = 1000  # what it keeps of a broken connection
frozen = sys.argv[3]
def refuse(event, args):
    writes = event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in ("os.mkdir", "os.rename", "os.symlink", "os.remove")) and frozen in str(args[0]):
        raise OSError(30, "Read-only file system", str(args[0]))
if frozen:
    sys.addaudithook(refuse)
cache = Path(sys.argv[2]) if sys.argv[2] else None
try: print(resolve(sys.argv[1], cache=cache, progress=lambda *event: print(*event)))
except DistaffError as error: print(type(error).__name__, error)
"""
"""Prints the progress and then the path of a model, or the error; writes nothing below the third argument."""


class Hub:
    """A running hub.

    Attributes:
      folder: the files of its repository. address: of its HTTP server.
      asked: the paths of all requests. ranges: the ranges of those that had one.
      cut: files whose next download ends after half of it. busiest: the most downloads at one time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.cut: set[str] = set()
        self.busiest = self._busy = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def downloads(self) -> list[str]:
        """The names of the files whose content was asked for since the last `forget`."""
        return sorted(
            path.rsplit("/", 1)[1] for path in self.asked if path.startswith("GET /org/tiny/resolve/")
        )

    def forget(self) -> None:
        """Forgets what was asked."""
        self.asked.clear()

    def names(self) -> list[str]:
        """The files of the repository, by path."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def download(
        self, name: str = NAME, cache: Path | None = None, *, frozen: Path | None = None, **variables: str
    ) -> list[str]:
        """Runs `resolve` in a separate process, because the hub's client reads its address on import.

        Args:
          cache: instead of the client's own. frozen: a folder in which the process may write nothing.
          variables: of its environment.
        """
        environment = os.environ | {"HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0"} | variables
        environment |= dict.fromkeys(
            ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1"
        )
        command = [sys.executable, "-c", CODE, name, str(cache or ""), str(frozen or "")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.asked.append(f"{request.command} {path}")
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [
                {"type": "file", "oid": "0" * 40, "size": (self.folder / name).stat().st_size, "path": name}
                for name in self.names()
            ]
            _send(request, json.dumps(entries).encode())
        elif path.startswith(f"/api/models/{NAME}"):
            files = [{"rfilename": name} for name in self.names()]
            _send(request, json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode())
        elif path.startswith(f"/{NAME}/resolve/"):
            self._send_file(request, path.split("/", 5)[5])
        else:
            _send(request, b"{}", status=404, code="RepoNotFound")

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = (self.folder / name).read_bytes()
        given = request.headers.get("Range", "")
        first = int(given.removeprefix("bytes=").split("-")[0]) if given else 0
        with self._lock:
            self.ranges += [given] if given else []
            self._busy += request.command == "GET"
            self.busiest = max(self.busiest, self._busy)
            sent = len(content) // 2 if request.command == "GET" and name in self.cut else len(content)
            self.cut -= {name} if sent < len(content) else set()
        if request.command == "GET":
            time.sleep(0.1)  # so that downloads meet
        _send(request, content[first:], status=206 if given else 200, sent=sent - first, whole=content)
        with self._lock:
            self._busy -= request.command == "GET"


def _send(
    request: BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 200,
    code: str = "",
    sent: int | None = None,
    whole: bytes | None = None,
) -> None:
    """Sends an answer, or its beginning."""
    digest = hashlib.sha1(body if whole is None else whole).hexdigest()
    headers = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
    request.send_response(status)
    for name, value in (headers | ({"X-Error-Code": code} if code else {})).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body[:sent])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub whose repository has a tiny model in four shards, and much that is not wanted."""
    folder = save_folder(tmp_path / "remote", make_model(), max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 4
    for name in ("pytorch_model.bin", "modeling_evil.py", "evil.pt", "README.md", "consolidated.safetensors",
                 "adapter_model.safetensors", "original/params.json", "original/consolidated.00.pth",
                 "original/model.safetensors", "onnx/model.onnx"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("never wanted")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    running = Hub(folder)
    yield running
    running.close()
