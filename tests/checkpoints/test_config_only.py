"""A model's configuration by any of its names, without its weights."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from distaff.checkpoints.config_only import read_config_only
from distaff.checkpoints.errors import CheckpointError, SourceNotFound
from distaff.model.errors import ConfigError

FILE = Path(__file__).parents[1] / "configs" / "mixtral-8x7b.json"


def test_a_file_or_a_folder_without_weights_is_enough(tmp_path: Path) -> None:
    """Under any name that ends in .json, or as config.json of a folder."""
    shutil.copy(FILE, tmp_path / "config.json")
    found = read_config_only(str(FILE)).config
    assert found == read_config_only(str(tmp_path)).config
    assert (found.layers, found.moe and found.moe.experts, found.context) == (32, 8, 32768)


def test_only_the_config_is_downloaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are downloaded to find out whether they fit."""
    asked = {}

    def fetch(name: str, **options: object) -> str:
        asked.update(options, name=name)
        shutil.copy(FILE, tmp_path / "config.json")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert read_config_only("some/model", revision="v2").config == read_config_only(str(FILE)).config
    assert (asked["name"], asked["revision"], asked["allow_patterns"]) == (
        "some/model",
        "v2",
        ["config.json"],
    )


def test_unreadable_configurations_are_refused(tmp_path: Path) -> None:
    """Missing, not JSON, or mathematics that is not implemented."""
    with pytest.raises(SourceNotFound):
        read_config_only("./nowhere.json")
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        read_config_only(str(damaged))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(FILE.read_text()), "model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="model_type is 'gpt2'"):
        read_config_only(str(other))


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "int4 but for head wide"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4 but for head wide"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
            "int8-groups but for head wide",
        ),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-blocks"),
        ({"quant_method": "fp8", "weight_block_size": [96, 96]}, "None"),
    ],
)
def test_how_weights_are_served_is_stated(tmp_path: Path, stated: dict[str, object], expected: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(FILE.read_text()), "quantization_config": stated}))
    assert str(read_config_only(str(path)).quantization) == expected
