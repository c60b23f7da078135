"""`distaff endpoint`: environment variables of text-generation-inference -> arguments of `distaff serve`.

Pure functions of the environment: `cli.py` starts the server and writes the log. Every variable becomes a
flag of `serve`, or is refused with its value, or is listed as ignored. None is dropped silently. An empty
variable counts as not set.
"""

from collections.abc import Mapping
from pathlib import Path

from .. import exit_codes, keys
from ..exit_codes import Failed
from ..flags import Tgi, flag, marked

REPOSITORY = Path("/repository")
"""Where an endpoint mounts its model."""
PORT = 8080
"""Not 80: many container platforms require a privilege for it."""

_LONGEST = 16
"""The most digits of a number that can be valid."""

Environment = Mapping[str, str]

_COUNTS = {mark.variable: flag(name) for name, mark in marked(Tgi) if not mark.values}
_CHOICES = {mark.variable: (flag(name), mark.values) for name, mark in marked(Tgi) if mark.values}
_IGNORED = (
    "ATTENTION CUDA_GRAPHS CUDA_MEMORY_FRACTION DISABLE_CUSTOM_KERNELS "
    "DISABLE_GRAMMAR_SUPPORT ENABLE_PREFILL_LOGPROBS GRACEFUL_TERMINATION_TIMEOUT JSON_OUTPUT LOG_LEVEL "
    "LORA_ADAPTERS MAX_ACTIVE_ADAPTERS MAX_BEST_OF MAX_CLIENT_BATCH_SIZE MAX_STOP_SEQUENCES "
    "MAX_TOP_N_TOKENS MAX_WAITING_TOKENS MESSAGES_API_ENABLED NGROK OTLP_ENDPOINT OTLP_SERVICE_NAME "
    "PAYLOAD_LIMIT PREFIX_CACHING PREFILL_CHUNKING ROPE_FACTOR ROPE_SCALING SHARDED SPECULATE "
    "TOKENIZER_CONFIG_PATH TRUST_REMOTE_CODE USAGE_STATS USE_PREFIX_CACHING VALIDATION_WORKERS "
    "WAITING_SERVED_RATIO WATERMARK_DELTA WATERMARK_GAMMA WEIGHTS_CACHE_OVERRIDE"
).split()


def serve_arguments(environment: Environment, repository: Path = REPOSITORY) -> list[str]:
    """The arguments of `distaff` that serve what the environment describes.

    Raises:
      Failed: an invalid value, or two values that contradict each other.
    """
    return [
        "serve",
        *_model(environment, repository),
        *["--host", "0.0.0.0", "--port", str(_count(environment, "PORT", 65535) or PORT)],
        *_auth(environment),
        *_numbers(environment),
        *_choices(environment),
        *_origins(environment),
        "--health-when-ready",
    ]


def ignored(environment: Environment) -> list[str]:
    """The variables that text-generation-inference reads and that have no effect here."""
    return [name for name in _IGNORED if environment.get(name)]


def _model(environment: Environment, repository: Path) -> list[str]:
    """The model and its revision. The whole path of a folder is an alias, because clients may use it."""
    model = environment.get("MODEL_ID") or (str(repository) if repository.is_dir() else "")
    words = [model] if model else []
    if model.startswith("/"):
        words += ["--alias", model]
    revision = environment.get("REVISION")
    return words + (["--revision", revision] if revision else [])


def _auth(environment: Environment) -> list[str]:
    """No keys by default, because the proxy in front of an endpoint authenticates clients.

    `serve` refuses a variable for keys that is set and empty: it may be a missing secret.
    """
    if keys.VARIABLE in environment:
        return []
    if environment.get("API_KEY"):
        raise _refused(f"API_KEY is set and would be ignored; expected {keys.VARIABLE}")
    return ["--auth", "none"]


def _numbers(environment: Environment) -> list[str]:
    found = {name: _count(environment, name) for name in _COUNTS}
    found["MAX_INPUT_LENGTH"] = _longest_prompt(environment)
    _check_bound(found, "MAX_INPUT_LENGTH", "MAX_TOTAL_TOKENS", 1)
    _check_bound(found, "MAX_TOTAL_TOKENS", "MAX_BATCH_TOTAL_TOKENS", 0)
    words = [(_COUNTS[name], str(value)) for name, value in found.items() if value is not None]
    shards = _count(environment, "NUM_SHARD") or 1
    if shards > 1:
        words.append(("--mesh", f"model={shards}"))
    return [word for pair in words for word in pair]


def _longest_prompt(environment: Environment) -> int | None:
    """One limit under two names; the second is the newer one."""
    older, newer = (_count(environment, name) for name in ("MAX_INPUT_LENGTH", "MAX_INPUT_TOKENS"))
    if older and newer and older != newer:
        raise _refused(
            f"MAX_INPUT_LENGTH is {older} and MAX_INPUT_TOKENS is {newer}; expected one of them, or the same"
        )
    return older or newer


def _check_bound(found: Mapping[str, int | None], name: str, bound: str, room: int) -> None:
    """Refuses a limit that is less than `room` below its bound."""
    low, high = found[name], found[bound]
    if low is not None and high is not None and low + room > high:
        relation = "less than" if room else "at most"
        raise _refused(f"{name} is {low}; expected {relation} {bound}, which is {high}")


def _choices(environment: Environment) -> list[str]:
    words = []
    for name, (word, known) in _CHOICES.items():
        value = environment.get(name)
        if value and value not in known:
            raise _refused(f"{name} is {value!r}; expected {' or '.join(sorted(known))}")
        words += [word, value] if value else []
    return words


def _origins(environment: Environment) -> list[str]:
    """TGI reads one or several origins, separated by commas. No value allows every page there, none here."""
    origins = environment.get("CORS_ALLOW_ORIGIN", "").split(",")
    return [word for origin in origins if origin.strip() for word in ("--allow-origin", origin.strip())]


def _count(environment: Environment, name: str, most: int | None = None) -> int | None:
    """A variable's positive integer; None if it is not set."""
    text = environment.get(name)
    if not text:
        return None
    if text.isascii() and text.isdecimal() and len(text) < _LONGEST and 1 <= int(text) <= (most or int(text)):
        return int(text)
    raise _refused(f"{name} is {text!r}; expected {'a positive integer' if most is None else f'1 to {most}'}")


def _refused(message: str) -> Failed:
    return Failed(message, exit_codes.USAGE)
