"""The application's arguments: what `serve run` gives as text, what a config file gives, what is refused."""

from pathlib import Path

import pytest
import yaml

from distaff.model.errors import ConfigError
from distaff.server.ray_serve.arguments import Arguments, parse_arguments, parse_flags


def test_arguments_are_the_same_from_a_command_line_and_from_a_file() -> None:
    typed = parse_arguments({"flags": "a/b --slots 8 --alias 'x y'", "replicas": "2", "cpus": "0.5"})
    filed = parse_arguments({"flags": ["a/b", "--slots", "8", "--alias", "x y"], "replicas": 2, "cpus": 0.5})
    assert typed.words == filed.words == ["a/b", "--slots", "8", "--alias", "x y"]
    assert typed.replicas == 2 and typed.actor_options == filed.actor_options
    flags = parse_flags(typed.words)
    assert (flags.model, flags.slots, flags.alias) == ("a/b", 8, ["x y"])


def test_the_example_file_has_valid_arguments() -> None:
    path = Path(__file__).parents[3] / "deploy" / "ray" / "serve.yaml"
    (application,) = yaml.safe_load(path.read_text())["applications"]
    arguments = parse_arguments(application["args"])
    flags = parse_flags(arguments.words)
    assert flags.slots and arguments.autoscaling and arguments.ingresses == 4


def test_what_is_reserved_is_what_ray_calls_it() -> None:
    arguments = Arguments(cpus=2, gpus=1, resources={"TPU": 4})
    assert arguments.actor_options == {"num_cpus": 2, "num_gpus": 1, "resources": {"TPU": 4}}
    assert arguments.bundle == {"CPU": 2, "GPU": 1, "TPU": 4}
    assert Arguments(cpus=0).bundle == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"flag": "x"}, "`flag`"),
        ({"replicas": 0}, ">= 1"),
        ({"hosts": "two"}, "$.hosts"),
        ({"resources": {"TPU": "four"}}, "$.resources"),
        ({"flags": 3}, "$.flags"),
    ],
)
def test_a_wrong_argument_is_named(given: dict, says: str) -> None:
    with pytest.raises(ConfigError, match="arguments of") as refused:
        parse_arguments(given)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--no-such"], "No such option: --no-such"),
        (["--slots", "0"], "'--slots': Input should be greater"),
        (["--kv-pages", "1", "--kv-tokens", "1"], "exclude each other"),
        (["--port", "1"], "--port is '1': it is set by the application"),
        (["--host", "0.0.0.0"], "--host"),
        (["--coordinator", "a:1", "--num-processes", "2"], "--coordinator"),
        (["--store-responses", "5"], "--store-responses is '5': it keeps"),
        (["--batches", "/tmp/files"], "--batches"),
        (["--profile", "/tmp/profiles"], "--profile"),
        (["one", "two"], "two"),
    ],
)
def test_a_wrong_flag_is_refused_in_the_words_of_the_command_line(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match="flags of distaff serve") as refused:
        parse_flags(words)
    assert says in str(refused.value)


def test_a_quotation_without_an_end_is_named() -> None:
    with pytest.raises(ConfigError, match=r"flags of distaff serve: .*a 'b.*: No closing quotation"):
        _ = parse_arguments({"flags": "a 'b"}).words
