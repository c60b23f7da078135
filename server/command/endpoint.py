"""`distaff endpoint`: an environment in text-generation-inference's words -> arguments of `distaff serve`.

Pure: it is given the environment, starts nothing and logs nothing; `cli.py` does. The one idea: what a
variable asks for is a flag of `serve`, is refused with its value, or is named as unheeded. None is dropped in
silence. An empty variable is one that is not set.
"""

from collections.abc import Mapping
from pathlib import Path

from .. import exit_codes, keys
from ..exit_codes import Failed

REPOSITORY = Path("/repository")
"""Where an endpoint mounts the model that it was made for."""
PORT = 8080
"""Not 80, which needs a privilege in many places where containers run."""

_LONGEST = 16
"""Digits of a number that means anything here."""

Environment = Mapping[str, str]

_COUNTS = {
    "MAX_TOTAL_TOKENS": "--context",
    "MAX_INPUT_LENGTH": "--max-input",
    "MAX_BATCH_SIZE": "--slots",
    "MAX_BATCH_PREFILL_TOKENS": "--prefill-tokens",
    "MAX_BATCH_TOTAL_TOKENS": "--kv-tokens",
    "MAX_CONCURRENT_REQUESTS": "--max-concurrent",
}
_CHOICES = {
    "DTYPE": ("--dtype", ("bfloat16", "float32")),
    "QUANTIZE": ("--quantize", ("int8",)),
    "KV_CACHE_DTYPE": ("--kv-cache-dtype", ("int8",)),
}
_UNHEEDED = (
    "ATTENTION CUDA_GRAPHS CUDA_MEMORY_FRACTION DISABLE_CUSTOM_KERNELS "
    "DISABLE_GRAMMAR_SUPPORT ENABLE_PREFILL_LOGPROBS GRACEFUL_TERMINATION_TIMEOUT JSON_OUTPUT LOG_LEVEL "
    "LORA_ADAPTERS MAX_ACTIVE_ADAPTERS MAX_BEST_OF MAX_CLIENT_BATCH_SIZE MAX_STOP_SEQUENCES "
    "MAX_TOP_N_TOKENS MAX_WAITING_TOKENS MESSAGES_API_ENABLED NGROK OTLP_ENDPOINT OTLP_SERVICE_NAME "
    "PAYLOAD_LIMIT PREFIX_CACHING PREFILL_CHUNKING ROPE_FACTOR ROPE_SCALING SHARDED SPECULATE "
    "TOKENIZER_CONFIG_PATH TRUST_REMOTE_CODE USAGE_STATS USE_PREFIX_CACHING VALIDATION_WORKERS "
    "WAITING_SERVED_RATIO WATERMARK_DELTA WATERMARK_GAMMA WEIGHTS_CACHE_OVERRIDE"
).split()


def serve_arguments(environment: Environment, repository: Path = REPOSITORY) -> list[str]:
    """What `distaff` must be given to serve what the environment asks for.

    Raises:
      Failed: a value that is none, or two that contradict each other.
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


def unheeded(environment: Environment) -> list[str]:
    """The variables that mean something to text-generation-inference, and nothing here."""
    return [name for name in _UNHEEDED if environment.get(name)]


def _model(environment: Environment, repository: Path) -> list[str]:
    """The model and its revision. A folder answers to its whole path, too, as clients may know it."""
    model = environment.get("MODEL_ID") or (str(repository) if repository.is_dir() else "")
    words = [model] if model else []
    if model.startswith("/"):
        words += ["--alias", model]
    revision = environment.get("REVISION")
    return words + (["--revision", revision] if revision else [])


def _auth(environment: Environment) -> list[str]:
    """Before an endpoint stands a proxy that knows who may ask; unless keys say so here.

    A variable for keys that is set and empty is left for `serve` to refuse: it may be a secret that is lost.
    """
    if keys.VARIABLE in environment:
        return []
    if environment.get("API_KEY"):
        raise _refused(f"API_KEY is set, and is not heeded; expected {keys.VARIABLE}")
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
    """One limit under two names, of which the second is the newer."""
    older, newer = (_count(environment, name) for name in ("MAX_INPUT_LENGTH", "MAX_INPUT_TOKENS"))
    if older and newer and older != newer:
        raise _refused(
            f"MAX_INPUT_LENGTH is {older} and MAX_INPUT_TOKENS is {newer}; expected one of them, or the same"
        )
    return older or newer


def _check_bound(found: Mapping[str, int | None], name: str, bound: str, room: int) -> None:
    """Refuses a limit that leaves less than `room` to the one above it."""
    low, high = found[name], found[bound]
    if low is not None and high is not None and low + room > high:
        relation = "less than" if room else "at most"
        raise _refused(f"{name} is {low}; expected {relation} {bound}, which is {high}")


def _choices(environment: Environment) -> list[str]:
    words = []
    for name, (flag, known) in _CHOICES.items():
        value = environment.get(name)
        if value and value not in known:
            raise _refused(f"{name} is {value!r}; expected {' or '.join(known)}")
        words += [flag, value] if value else []
    return words


def _origins(environment: Environment) -> list[str]:
    """TGI takes one origin, or several with commas between. Silence is every page there, and none here."""
    origins = environment.get("CORS_ALLOW_ORIGIN", "").split(",")
    return [word for origin in origins if origin.strip() for word in ("--allow-origin", origin.strip())]


def _count(environment: Environment, name: str, most: int | None = None) -> int | None:
    """A variable's positive integer; None where it is not set."""
    text = environment.get(name)
    if not text:
        return None
    if text.isascii() and text.isdecimal() and len(text) < _LONGEST and 1 <= int(text) <= (most or int(text)):
        return int(text)
    raise _refused(f"{name} is {text!r}; expected {'a positive integer' if most is None else f'1 to {most}'}")


def _refused(message: str) -> Failed:
    return Failed(message, exit_codes.USAGE)
