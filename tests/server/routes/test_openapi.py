"""/openapi.json is true: schemathesis draws requests from it, good and bad, and holds the answers to it.

Its coverage phase goes through every bound, enum and type of every parameter; its fuzzing phase draws whole
bodies. All of its checks are on; `openapi_rules` names the rules that no schema states.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distaff.server.keys import Keys

from ..conftest import Server

KEY = "sk-key-for-schemathesis"
EXAMPLES = 20
CONTEXT = 1024
CONFIG = Path(__file__).with_name("schemathesis.toml")
LEAST_ACCEPTED = 0.3
"""Of an operation's good requests. The others break a rule that no schema states: bodies of /invocations
often have every parameter, with those that exclude each other."""


STORED = re.compile(r"(GET|POST|DELETE) /v1/batches|(GET|DELETE) /v1/(files|responses)")
"""Operations on what is stored: no good id is known before, so most good requests are answered 404."""

LENIENT = pytest.param(False, id="lenient", marks=pytest.mark.clients)
STRICT = pytest.param(True, id="strict")


@pytest.fixture(scope="module", params=[LENIENT, STRICT])
def whole_api(request, tmp_path_factory):
    """A server with everything that an operator can open."""
    folder, keys = tmp_path_factory.mktemp("batches"), Keys([KEY])
    stores = {"batches": folder, "store_responses": 5}
    server = Server(embeddings=True, profile=Path("unused"), keys=keys, strict=request.param, **stores)
    server.reset()
    assert server.engine.info is not None
    server.engine.info = replace(server.engine.info, context=CONTEXT)
    yield server
    server.close()


def explored(server: Server, folder: Path, phases: str) -> dict[str, Any]:
    """What schemathesis found, as its own report has it."""
    report = folder / "report.json"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}", "--phases", phases, "--checks", "all"),
            *("--max-examples", str(EXAMPLES), "--generation-deterministic", "--request-timeout", "20"),
            *("--continue-on-failure", "--no-shrink", "--no-color", "--report", "json"),
            *("--report-json-path", str(report)),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "openapi_rules", "PYTHONPATH": str(Path(__file__).parent)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(report.read_text())


def test_every_answer_is_as_described(whole_api, tmp_path):
    """Bad requests are refused and good ones accepted, with the statuses, types and shapes that it names."""
    phases = "fuzzing" if whole_api.settings.flags.strict else "coverage,fuzzing"
    found = explored(whole_api, tmp_path, phases)
    assert found["complete"] and found["operations"]["tested"] == found["operations"]["total"] == 43
    rated = {name: rates for name, rates in found["valid_rates"].items() if not STORED.search(name)}
    assert len(rated) > 15
    for operation, rates in rated.items():
        for phase, rate in rates.items():
            assert rate["accepted"] >= LEAST_ACCEPTED * sum(rate.values()), (operation, phase, rate)
