"""A new sampling parameter is declared once for the engine and once for the API: three files in all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EDITS = {
    "runtime/request.py": (
        "    min_p: float =",
        "    tail: float = _number(0.0, 0.0, 1.0, float, packed=True)\n",
    ),
    "runtime/device/sampling.py": ("    min_p_B: jax.Array\n", "    tail_B: jax.Array\n"),
    "server/protocol/sampling.py": (
        "    min_p: float | None =",
        '    tail: float | None = _parameter(Number(0, 1), "made up", engine=True)\n',
    ),
}
"""In each file: a place, and what is inserted before it."""

SERVER = """
from types import SimpleNamespace
from distaff.runtime.request import InvalidRequest, SamplingParams
from distaff.server.answering.prompt import sampling_params
from distaff.server.errors import BadRequest
from distaff.server.protocol.kinds import Limits
from distaff.server.protocol.openai.chat import parse_chat
from distaff.server.protocol.openapi.document import document
from distaff.server.protocol.openapi.meanings import describe, table
from distaff.server.protocol.tgi.generate import parse_generate
from distaff.server.text.text_model import NoDefaults

def refused(make, **values):
    try:
        make(**values)
    except (BadRequest, InvalidRequest) as error:
        return error.param

def chat(**values):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
    return parse_chat(body | values, most_choices=1, strict=True).sampling

def engines(sampling, defaults=NoDefaults()):
    return sampling_params(sampling, SimpleNamespace(eos_ids=(2,)), defaults, 0).tail

assert engines(chat(tail=0.25)) == 0.25 and engines(chat()) == 0.0
assert engines(chat(), SimpleNamespace(tail=0.5)) == 0.5
generate = parse_generate({"inputs": "Hello!"}, most_choices=1).sampling
assert engines(generate, SimpleNamespace(tail=0.5)) == 0.0
assert refused(chat, tail=1.5) == refused(SamplingParams, tail=1.5) == "tail"
for route in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
    assert {"name": "tail", "status": "honoured", "meaning": "made up"} in describe(route)
    assert "| `tail` | honoured | made up |" in table(route)
    path = document("1", Limits(), keys=False)["paths"][route]["post"]
    schema = path["requestBody"]["content"]["application/json"]["schema"]["properties"]["tail"]
    number = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    assert schema == number | {"description": "made up"}
"""

ENGINE = """
from distaff.runtime.device.buckets import Bucket, Layout, Shapes
from distaff.runtime.device.packing import pack
from distaff.runtime.device.steps import _row_params
from distaff.runtime.policy.sequence import Row, Sequence
from distaff.runtime.request import Request, SamplingParams

request = Request(id="r", prompt=(1, 2, 3), params=SamplingParams(tail=0.25))
sequence = Sequence(request=request, seed=1, limit=9, arrival=0, tokens=[1, 2, 3])
sequence.pages = [1]
shapes = Shapes(slots=2, budget=8, page_size=16, table=1, tile=8)
for bucket in (shapes.buckets()[0], Bucket(kind="decode", tokens=4, rows=4)):
    layout = Layout(bucket, shapes)
    row = Row(sequence, 1, 0, 3, samples=True, first=True)
    tail_B = _row_params(layout.unpack(pack([row], bucket, layout, shapes))).tail_B
    assert tail_B.dtype == "float32" and max(tail_B) == 0.25, tail_B
"""


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the made-up parameter `tail`."""
    path = tmp_path_factory.mktemp("edited")
    for folder in ("model", "checkpoints", "runtime", "server"):
        shutil.copytree(
            ROOT / folder, path / "distaff" / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ROOT.glob("*.py"):
        shutil.copy(file, path / "distaff")
    for name, (place, line) in EDITS.items():
        file = path / "distaff" / name
        text = file.read_text()
        assert text.count(place) == 1, name
        file.write_text(text.replace(place, line + place))
    return path


@pytest.mark.parametrize("script", [SERVER, ENGINE], ids=["server", "engine"])
def test_three_files_make_a_new_parameter(edited, script):
    """It is parsed, refused, documented and packed, and reaches the sampler; no other file knows of it."""
    assert len(EDITS) <= 3
    script = f"import distaff.server as found; assert found.__path__[0].startswith({str(edited)!r})\n{script}"
    environment = {**os.environ, "PYTHONPATH": str(edited), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=edited, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
