"""An environment in TGI's words becomes a command line: nothing is misread, nothing dropped in silence."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from distaff.server import exit_codes
from distaff.server.command import serve
from distaff.server.command.cli import app, run
from distaff.server.command.endpoint import ignored, serve_arguments
from distaff.server.exit_codes import Failed

NOWHERE = Path("/no/such/repository")
OPEN = ["--host", "0.0.0.0", "--port", "8080", "--auth", "none", "--health-when-ready"]
COUNTS = (
    "MAX_TOTAL_TOKENS MAX_INPUT_LENGTH MAX_INPUT_TOKENS MAX_BATCH_SIZE MAX_BATCH_PREFILL_TOKENS "
    "MAX_BATCH_TOTAL_TOKENS MAX_CONCURRENT_REQUESTS NUM_SHARD PORT"
).split()


def flags(environment: dict[str, str], repository: Path = NOWHERE) -> dict[str, str | None]:
    """What the environment says beyond an empty one: each flag with its value, the model under ''."""
    (name, *words) = serve_arguments(environment, repository)
    assert name == "serve"
    found: dict[str, str | None] = {} if words[0].startswith("--") else {"": words.pop(0)}
    while words:
        flag = words.pop(0)
        found[flag] = None if not words or words[0].startswith("--") else words.pop(0)
    usual = {"--host": "0.0.0.0", "--port": "8080", "--auth": "none", "--health-when-ready": None}
    return {flag: value for flag, value in found.items() if usual.get(flag, "") != value}


def test_several_origins_have_commas_between():
    words = serve_arguments({"CORS_ALLOW_ORIGIN": "https://a.example, http://b.example,"}, NOWHERE)
    assert words[-5:-1] == ["--allow-origin", "https://a.example", "--allow-origin", "http://b.example"]


def test_nothing_said_is_the_bundled_model_for_everybody():
    assert serve_arguments({}, NOWHERE) == ["serve", *OPEN]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MODEL_ID": "org/name", "REVISION": "v1"}, {"": "org/name", "--revision": "v1"}),
        ({"MODEL_ID": "/models/one"}, {"": "/models/one", "--alias": "/models/one"}),
        ({"PORT": "80"}, {"--port": "80"}),
        ({"MAX_TOTAL_TOKENS": "2048"}, {"--context": "2048"}),
        ({"MAX_INPUT_LENGTH": "1024"}, {"--max-input": "1024"}),
        ({"MAX_INPUT_TOKENS": "1024"}, {"--max-input": "1024"}),
        ({"MAX_INPUT_TOKENS": "7", "MAX_INPUT_LENGTH": "7"}, {"--max-input": "7"}),
        ({"MAX_BATCH_PREFILL_TOKENS": "4096"}, {"--prefill-tokens": "4096"}),
        ({"MAX_BATCH_TOTAL_TOKENS": "8192"}, {"--kv-tokens": "8192"}),
        ({"MAX_TOTAL_TOKENS": "9", "MAX_BATCH_TOTAL_TOKENS": "9"}, {"--context": "9", "--kv-tokens": "9"}),
        ({"MAX_CONCURRENT_REQUESTS": "128"}, {"--max-concurrent": "128"}),
        ({"MAX_BATCH_SIZE": "16"}, {"--slots": "16"}),
        ({"NUM_SHARD": "4"}, {"--mesh": "model=4"}),
        ({"NUM_SHARD": "1"}, {}),
        ({"CORS_ALLOW_ORIGIN": "https://a.example"}, {"--allow-origin": "https://a.example"}),
        ({"DTYPE": "bfloat16", "QUANTIZE": "int8"}, {"--dtype": "bfloat16", "--quantize": "int8"}),
        ({"KV_CACHE_DTYPE": "int8"}, {"--kv-cache-dtype": "int8"}),
        ({"HF_TOKEN": "hf_secret", "HOSTNAME": "0f3a", "PATH": "/bin"}, {}),
    ],
)
def test_a_variable_is_a_flag(environment, expected):
    assert flags(environment) == expected


def test_the_mounted_model_is_the_default(tmp_path):
    """It answers to the path that an endpoint knows it by; a model that is named goes first."""
    assert flags({}, tmp_path) == {"": str(tmp_path), "--alias": str(tmp_path)}
    assert flags({"MODEL_ID": "smollm2"}, tmp_path) == {"": "smollm2"}


@pytest.mark.parametrize("keys", ["sk-0123456789", ""])
def test_keys_are_asked_for_where_the_variable_is_set(keys):
    """One that is set and empty is a secret that was lost: `serve` refuses it."""
    assert "--auth" not in serve_arguments({"DISTAFF_API_KEYS": keys}, NOWHERE)


@given(st.dictionaries(st.sampled_from([*COUNTS, "MODEL_ID", "REVISION", "DTYPE", "QUANTIZE"]), st.just("")))
def test_an_empty_variable_is_not_set(environment):
    assert serve_arguments(environment, NOWHERE) == ["serve", *OPEN]


@given(
    st.sampled_from(COUNTS),
    st.one_of(st.text(min_size=1), st.integers(max_value=0).map(str), st.floats().map(str)),
)
def test_what_is_no_positive_integer_is_refused_with_its_value(name, value):
    if value.isascii() and value.isdecimal() and int(value) > 0:
        return
    with pytest.raises(Failed) as refused:
        serve_arguments({name: value}, NOWHERE)
    assert str(refused.value).startswith(f"{name} is {value!r}; expected ")
    assert refused.value.code == exit_codes.USAGE


@given(*[st.none() | st.integers(1, 40)] * 3)
def test_limits_hold_one_another(longest, total, pool):
    """As TGI has it: a prompt is shorter than a sequence, and a sequence fits the batch."""
    named = {"MAX_INPUT_LENGTH": longest, "MAX_TOTAL_TOKENS": total, "MAX_BATCH_TOTAL_TOKENS": pool}
    environment = {name: str(value) for name, value in named.items() if value}
    sound = not (longest and total and longest >= total) and not (total and pool and total > pool)
    if sound:
        assert len(flags(environment)) == len(environment)
    else:
        with pytest.raises(Failed, match=r"(MAX_\w+) is \d+; expected (less than|at most) MAX_\w+, which is"):
            serve_arguments(environment, NOWHERE)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PORT": "65536"}, "PORT is '65536'; expected 1 to 65535"),
        (
            {"MAX_TOTAL_TOKENS": "9" * 5000},
            f"MAX_TOTAL_TOKENS is '{'9' * 5000}'; expected a positive integer",
        ),
        ({"DTYPE": "float16"}, "DTYPE is 'float16'; expected bfloat16 or float32"),
        ({"QUANTIZE": "awq"}, "QUANTIZE is 'awq'; expected as-is or fp8 or int4 or int8 or none"),
        ({"API_KEY": "secret"}, "API_KEY is set and would be ignored; expected DISTAFF_API_KEYS"),
        (
            {"MAX_INPUT_LENGTH": "5", "MAX_INPUT_TOKENS": "6"},
            "MAX_INPUT_LENGTH is 5 and MAX_INPUT_TOKENS is 6; expected one of them, or the same",
        ),
    ],
)
def test_what_we_do_not_have_is_refused(environment, message):
    with pytest.raises(Failed) as refused:
        serve_arguments(environment, NOWHERE)
    assert (str(refused.value), refused.value.code) == (message, exit_codes.USAGE)


def test_the_contract_is_written_down():
    """The table of docs/container.md has every variable that is heeded, with the flag that it becomes."""
    page = (Path(__file__).parents[3] / "docs" / "container.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \|.*\| ?(.*) \|$", page, re.MULTILINE))
    heeded = {name: "4" for name in COUNTS if name not in ("NUM_SHARD", "MAX_INPUT_TOKENS")}
    heeded |= {"DTYPE": "float32", "QUANTIZE": "int8", "KV_CACHE_DTYPE": "int8", "REVISION": "main"}
    heeded |= {"NUM_SHARD": "2", "CORS_ALLOW_ORIGIN": "http://a.example"}
    for name, value in heeded.items():
        (flag,) = flags({name: value})
        assert f"`{flag}" in rows.pop(name), name
    assert set(rows) == {"MODEL_ID", "HF_TOKEN", "DISTAFF_API_KEYS"}
    assert "MAX_INPUT_TOKENS" in page and "HUGGING_FACE_HUB_TOKEN" in page


def test_every_flag_is_one_of_serves_and_no_variable_is_both_heeded_and_not():
    everything = {name: "8" for name in COUNTS} | {
        "MAX_INPUT_LENGTH": "4", "MAX_INPUT_TOKENS": "4", "DTYPE": "float32", "QUANTIZE": "int8",
        "KV_CACHE_DTYPE": "int8", "MODEL_ID": "/m", "REVISION": "main", "CORS_ALLOW_ORIGIN": "*",
    }  # fmt: skip
    options = {
        name for parameter in typer.main.get_command(app).commands["serve"].params for name in parameter.opts
    }
    assert set(flags(everything)) - {""} <= options
    assert ignored(everything) == []
    assert ignored({"ROPE_SCALING": "dynamic", "MAX_WAITING_TOKENS": "", "JSON_OUTPUT": "true"}) == [
        "JSON_OUTPUT",
        "ROPE_SCALING",
    ]


def test_it_serves_what_it_understood(monkeypatch, caplog):
    """In this very process, as `serve` would; the command line is logged once, the token never."""
    made = []
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])

    class WebProcess:
        def __init__(self, settings, commands, *others, **options):
            made.append((settings, commands[0][-1]))

        def run(self):
            pass

    monkeypatch.setattr(serve, "WebProcess", WebProcess)
    monkeypatch.setattr("distaff.server.engines.engine_process.start_early", lambda commands: None)
    monkeypatch.setattr(
        "distaff.server.command.cli.configure_logging", lambda level, **_: caplog.set_level(level)
    )
    for name, value in {
        "MODEL_ID": "smollm2", "PORT": port, "MAX_INPUT_LENGTH": "16", "MAX_TOTAL_TOKENS": "64",
        "MAX_CONCURRENT_REQUESTS": "3", "HF_TOKEN": "hf_secret", "ROPE_FACTOR": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run(lambda: app(["endpoint"], standalone_mode=False)) == 0
    ((settings, worker),) = made
    chosen = settings.flags
    assert (settings.model, chosen.max_concurrent, chosen.health_when_ready) == ("smollm2", 3, True)
    assert '"max_input":16' in worker and '"context":64' in worker
    lines = [record.getMessage() for record in caplog.records]
    assert sum(f"distaff serve smollm2 --host 0.0.0.0 --port {port} " in line for line in lines) == 1
    assert "ignored environment variables: ROPE_FACTOR" in lines
    assert any(line.startswith("--auth none: anybody who can reach") for line in lines)
    assert "hf_secret" not in caplog.text


@pytest.mark.parametrize(
    ("environment", "code", "hint"),
    [
        ({"PORT": "abc"}, 2, "PORT is 'abc'; expected 1 to 65535"),
        ({"MAX_TOTAL_TOKENS": "-1"}, 2, "MAX_TOTAL_TOKENS is '-1'; expected a positive integer"),
        ({"MODEL_ID": "./no-such-model"}, 66, "./no-such-model"),
    ],
)
def test_a_mistake_ends_the_process_with_a_line_and_a_code(environment, code, hint):
    done = subprocess.run(
        [sys.executable, "-m", "distaff.server.command.cli", "endpoint"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (code, "")
    assert last.startswith("distaff: ") and hint in last


def test_the_hub_clients_own_variables_give_the_token():
    """Both names, the older too, are read by huggingface_hub itself; nothing is left to translate."""
    code = "import huggingface_hub; print(huggingface_hub.get_token())"
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        told = subprocess.run(
            [sys.executable, "-c", code], env=bare | {name: "hf_abc"}, capture_output=True, text=True
        )
        assert told.stdout == "hf_abc\n", told.stderr
