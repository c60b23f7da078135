"""What a start and an orderly end print where stderr is a file: our own lines, and nobody else's."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from .conftest import DISTAFF, SMALL

pytestmark = pytest.mark.serial
OURS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) distaff\.[\w.]+: .+")
NO_TORCH = "import sys; sys.modules['torch'] = None"


def test_every_line_of_a_servers_life_is_ours(tmp_path: Path, monkeypatch):
    """Without PyTorch, with libtpu and no TPU; all processes are signalled at once, as orchestrators do."""
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("TPU_", "LIBTPU_", "TRANSFORMERS_", "JAX_PLATFORMS", "TF_CPP")):
            monkeypatch.delenv(name)
    out, log = tmp_path / "out", tmp_path / "log"
    command = [str(DISTAFF), "serve", "--port", "0", *SMALL]
    with out.open("w") as stdout, log.open("w") as stderr:
        # Without `env` it would inherit what libtpu, loaded by another test, has set beside `os.environ`.
        server = psutil.Popen(
            command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, env=dict(os.environ)
        )
    try:
        limit = time.monotonic() + 180
        while "OpenAI(" not in out.read_text():
            assert server.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.05)
        for process in (*server.children(), server):
            process.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        for process in (*server.children(recursive=True), server) if server.poll() is None else ():
            process.kill()
    lines = log.read_text().splitlines()
    assert [line for line in lines if not OURS.fullmatch(line)] == []
    assert len([line for line in lines if "progress: verify" in line]) < 4
