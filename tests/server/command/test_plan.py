"""`distaff plan` as an operator uses it: tables, JSON, a picture, exit codes, and wrong words."""

import json
import sys
from pathlib import Path

import pytest

from distaff.server import exit_codes
from distaff.server.command import cli

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = str(CONFIGS / "llama-3.1-8b.json")
FITTING = ["plan", LLAMA, "--topology", "h100:2", "--context", "8192", "--no-compile"]


def distaff(*words: str) -> int:
    """The command's exit code."""
    return cli.run(lambda: cli.app(list(words), standalone_mode=False))


def test_tables_say_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, steps, collectives, rates, XLA's estimate, and what is a guess."""
    assert distaff(*FITTING) == exit_codes.OK
    said = capsys.readouterr().out
    assert "llama-3.1-8b.json on h100:2, 2 devices, bfloat16; lowered for cuda, not compiled" in said
    for part in (
        "Memory of each device",
        "temporaries (guess)",
        "Steps at the roofline",
        "all-reduce",
        "first token",
    ):
        assert part in said
    assert "note: XLA's compiler for GPUs is not installed (extra cuda-aot): temporaries are a guess" in said


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """One object, whole, on standard output."""
    assert distaff(*FITTING, "--json", "--quantize", "int8", "--slots", "16") == exit_codes.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["topology"], found["quantize"], found["slots"], found["fits"]) == (
        "h100:2",
        "int8",
        16,
        True,
    )
    assert [rate["streams"] for rate in found["rates"]] == [1, 2, 4, 8, 16]
    assert found["memory"]["weights"] < 5e9 < found["memory"]["used"] < found["memory"]["limit"]


def test_not_fitting_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    """With what is missing and what would fit, on standard output; nothing is drawn."""
    model = str(CONFIGS / "llama-3.1-70b.json")
    assert distaff("plan", model, "--topology", "h100:1") == exit_codes.DOES_NOT_FIT == 3
    said = capsys.readouterr()
    assert "does not fit: the weights take 131.42 GiB of 74.51 GiB" in said.out and not said.err
    assert "would fit: --topology h100:4" in said.out


@pytest.mark.parametrize(("name", "beginning"), [("sweep.png", b"\x89PNG"), ("sweep.svg", b"<?xml")])
def test_a_picture_is_drawn(tmp_path: Path, name: str, beginning: bytes) -> None:
    """In the format that the name's ending says."""
    pytest.importorskip("matplotlib")
    assert distaff(*FITTING, "--json", "--plot", str(tmp_path / name)) == exit_codes.OK
    assert (tmp_path / name).read_bytes().startswith(beginning)


def test_pictures_need_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its absence is one line that says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert distaff(*FITTING, "--plot", "x.png") == exit_codes.REFUSED_SETTING
    assert "pip install 'distaff[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([LLAMA, "--topology", "v9:2x2"], 2, "no chip 'v9'"),
        ([LLAMA, "--topology", "v5e:3x5"], 2, "expected one of 1x1"),
        ([LLAMA], 2, "Missing option '--topology'"),
        ([LLAMA, "--topology", "l4:1", "--slots", "0"], 2, "Input should be greater than or equal to 1"),
        (["./nowhere", "--topology", "l4:1"], 66, "./nowhere: no such file or folder"),
        ([str(CONFIGS), "--topology", "l4:1"], 65, "expected model.safetensors"),
        ([LLAMA, "--topology", "h100:1", "--context", "999999"], 78, "the model was made for 131072 at most"),
        ([LLAMA, "--topology", "h100:1", "--context", "99"], 78, "expected at most the context, 99"),
        ([*FITTING[1:], "--plot", "/nowhere/x.png"], 2, "/nowhere/x.png: cannot be written"),
        ([*FITTING[1:], "--plot", "x.doc"], 2, "x.doc: cannot be written"),
    ],
)
def test_wrong_words_get_one_line(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found and what is expected, on one line of standard error."""
    assert distaff("plan", *words) == code
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
