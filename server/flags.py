"""The flags of `distaff serve`. Each is declared once: name, type, default, bounds, help and marks.

Everything that handles flags reads `ServeFlags`: the command line (typer reads the `typer.Option` of each
field), `distaff endpoint` (the `Tgi` marks), the web process, and the engine process, which receives the
flags as JSON and derives its settings from them. Nothing here imports jax.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
import typer

from ..model.errors import ConfigError
from ..runtime.options import Membership, parse_adapters, parse_kernels, parse_mesh
from .logs import LogFormat

Dtype = Literal["float32", "bfloat16"]
Int8 = Literal["int8"]
Quantizations = Literal["int8", "int4", "fp8", "as-is", "none"]
Auth = Literal["keys", "none"]
"""Who may send requests: clients with a key, if there are keys or others can reach the host; or anybody."""


@dataclass(frozen=True, slots=True)
class Tgi:
    """Marks a flag that `distaff endpoint` sets from a variable of text-generation-inference.

    Attributes:
      variable: its name. values: the values that it accepts; empty for a positive integer.
    """

    variable: str
    values: tuple[str, ...] = ()


class Compiled:
    """Marks a flag that all processes of a mesh must share, because it is part of what is compiled."""


Mark = TypeVar("Mark", Tgi, Compiled)


def written_as(parse: Callable[[Any], object]) -> Callable[[Any], Any]:
    """A callback for typer that checks a flag's syntax: what `parse` refuses is wrong usage."""

    def check(value: Any) -> Any:
        try:
            parse(value)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a GGUF, a store, ORG/NAME on the hub or a bundled name; by default a bundled model.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Quantize = Annotated[
    Quantizations | None,
    typer.Option(
        help="Quantize the linear weights; as-is keeps the bits of quantised files, none widens them."
    ),
    Tgi("QUANTIZE", get_args(Quantizations)),
    Compiled(),
]
PlannedQuantize = Annotated[
    Literal["int8", "int4", "fp8"] | None, typer.Option("--quantize", help="Quantize the linear weights.")
]
KvCacheDtype = Annotated[
    Int8 | None,
    typer.Option(help="Quantize keys and values."),
    Tgi("KV_CACHE_DTYPE", get_args(Int8)),
    Compiled(),
]
Context = Annotated[
    int | None,
    typer.Option(min=1, help="The longest sequence, in tokens."),
    Tgi("MAX_TOTAL_TOKENS"),
    Compiled(),
]
Slots = Annotated[
    int | None,
    typer.Option(min=1, help="Sequences decoded at the same time."),
    Tgi("MAX_BATCH_SIZE"),
    Compiled(),
]


class ServeFlags(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The flags of `distaff serve`, in the order of its help; None derives a value from model and machine."""

    model: ModelName = None
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000
    alias: Annotated[list[str] | None, typer.Option(help="Another name for the model; repeatable.")] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Serve a LoRA adapter under a name; repeatable.",
            callback=written_as(lambda adapters: parse_adapters(adapters or ())),
        ),
    ] = None
    max_adapters: Annotated[
        int | None,
        typer.Option(min=1, help="Most adapters on the device at the same time."),
        Compiled(),
    ] = None
    max_adapter_rank: Annotated[
        int | None, typer.Option(min=1, help="The largest rank of an adapter."), Compiled()
    ] = None
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Serve the model under any name in a request.")
    ] = False
    context: Context = None
    max_input: Annotated[
        int | None, typer.Option(min=1, help="The longest prompt, in tokens."), Tgi("MAX_INPUT_LENGTH")
    ] = None
    default_max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most generated tokens if a request sets no limit.")
    ] = None
    slots: Slots = None
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests, waiting or running; further ones are refused."),
        Tgi("MAX_CONCURRENT_REQUESTS"),
    ] = None
    max_wait: Annotated[
        float, typer.Option(min=0, help="Longest wait for a first token, in seconds; else a refusal.")
    ] = 30.0
    max_pause: Annotated[
        float, typer.Option(min=0, help="Longest wait of a stream whose engine is lost, in seconds.")
    ] = 300.0
    prefill_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most prompt tokens in one step."),
        Tgi("MAX_BATCH_PREFILL_TOKENS"),
        Compiled(),
    ] = None
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Data type of the computation."),
        Tgi("DTYPE", get_args(Dtype)),
        Compiled(),
    ] = None
    quantize: Quantize = None
    kv_cache_dtype: KvCacheDtype = None
    kv_pages: Annotated[int | None, typer.Option(min=1, help="Size of the KV pool in pages."), Compiled()] = (
        None
    )
    kv_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Size of the KV pool in tokens."),
        Tgi("MAX_BATCH_TOTAL_TOKENS"),
        Compiled(),
    ] = None
    host_kv_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Keys and values that host memory keeps, in tokens; 0 keeps none."),
    ] = None
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="model=N", help="Shard the model over N devices.", callback=written_as(parse_mesh)
        ),
        Compiled(),
    ] = None
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPERATION=BACKEND",
            help="Choose a kernel's backend; repeatable.",
            callback=written_as(lambda choices: parse_kernels(choices or ())),
        ),
        Compiled(),
    ] = None
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of process 0, to which the other processes connect."),
    ] = None
    process_id: Annotated[int, typer.Option(min=0, help="Number of this process; 0 is the leader.")] = 0
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that share one model.")] = 1
    replicas: Annotated[int, typer.Option(min=1, help="Engines, each with its own devices.")] = 1
    no_prefix_cache: Annotated[
        bool, typer.Option("--no-prefix-cache", help="Compute every prompt in full.")
    ] = False
    no_speculation: Annotated[
        bool, typer.Option("--no-speculation", help="Turn off speculative decoding.")
    ] = False
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Give equal requests equal results under any load."),
        Compiled(),
    ] = False
    profile: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            resolve_path=True,
            help="Folder for the profiles of POST /start_profile and /stop_profile.",
        ),
    ] = None
    compiled: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            resolve_path=True,
            help="Compiled steps of `distaff pack`: run as code.",
        ),
    ] = None
    revision: Revision = None
    chat_template: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A Jinja file that replaces the model's template."),
    ] = None
    tool_format: Annotated[
        Literal["hermes", "llama3", "mistral", "mistral-args", "granite"] | None,
        typer.Option(help="How the model writes tool calls; by default its template decides."),
    ] = None
    reasoning_format: Annotated[
        Literal["auto", "none", "deepseek", "mistral"],
        typer.Option(help="How the model marks its reasoning, which is separated from the answer."),
    ] = "auto"
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Answer POST /v1/embeddings with mean hidden states.")
    ] = False
    store_responses: Annotated[
        int, typer.Option(min=0, metavar="N", help="Keep the last N responses of /v1/responses in memory.")
    ] = 0
    batches: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            resolve_path=True,
            help="Folder of /v1/files and /v1/batches, which are off without.",
        ),
    ] = None
    api_keys: Annotated[
        Path | None, typer.Option(help="A file of API keys, one per line; read again when it changes.")
    ] = None
    auth: Annotated[Auth, typer.Option(help="`none` accepts requests without a key.")] = "keys"
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Accept requests from web pages of https://app.example.com, say; repeatable.",
        ),
    ] = None
    any_origin_with_keys: Annotated[
        bool,
        typer.Option("--any-origin-with-keys", help="Allow `--allow-origin '*'` together with API keys."),
    ] = False
    health_when_ready: Annotated[
        bool, typer.Option("--health-when-ready", help="GET /health answers like GET /ready.")
    ] = False
    no_page: Annotated[bool, typer.Option("--no-page", help="Serve no chat page at /.")] = False
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unknown parameters, as OpenAI does.")] = (
        False
    )
    usage_log: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, resolve_path=True, help="A file that gets a line of JSON for each request."
        ),
    ] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option()] = "info"
    log_format: Annotated[LogFormat, typer.Option(help="Log lines of text, or JSON objects.")] = "text"

    @property
    def membership(self) -> Membership | None:
        """This process's place among several; None for a single process.

        Raises:
          ConfigError: the coordinator's address or the numbers are invalid.
        """
        if self.coordinator is None:
            return None
        return Membership(coordinator=self.coordinator, process=self.process_id, processes=self.num_processes)

    def check_together(self) -> None:
        """Refuses flags that exclude each other.

        Raises:
          typer.BadParameter: there are such flags.
        """
        if self.kv_pages is not None and self.kv_tokens is not None:
            raise typer.BadParameter("--kv-pages and --kv-tokens exclude each other")
        if self.coordinator is None and (self.num_processes > 1 or self.process_id > 0):
            raise typer.BadParameter("--num-processes and --process-id need --coordinator HOST:PORT")
        if self.coordinator is not None and self.replicas > 1:
            raise typer.BadParameter("--replicas and --coordinator exclude each other")
        if (self.max_adapters or self.max_adapter_rank) and not self.adapter:
            raise typer.BadParameter("--max-adapters and --max-adapter-rank need an --adapter")
        if self.adapter and self.coordinator is not None:
            raise typer.BadParameter("--adapter and --coordinator exclude each other")
        if self.host_kv_tokens and (self.coordinator is not None or self.no_prefix_cache):
            raise typer.BadParameter("--host-kv-tokens needs a prefix cache and a single process")
        written_as(lambda flags: flags.membership)(self)

    def that_need_less_memory(self) -> Iterator[str]:
        """Flags with which the same model needs less memory on each device."""
        if self.quantize is None:
            yield "--quantize int8"
        if self.kv_cache_dtype is None:
            yield "--kv-cache-dtype int8"
        if self.kv_pages is not None:
            yield f"fewer --kv-pages than {self.kv_pages}"
        if self.kv_tokens is not None:
            yield f"fewer --kv-tokens than {self.kv_tokens}"
        yield "fewer --slots, a smaller --context, more devices (--mesh model=N); see `distaff plan`"

    def to_argument(self) -> str:
        """The flags as a single argument of an engine process's command line."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def from_argument(cls, argument: str) -> "ServeFlags":
        """The inverse of `to_argument`."""
        return msgspec.json.decode(argument, type=cls, dec_hook=lambda kind, value: kind(value))


def marked(kind: type[Mark]) -> Iterator[tuple[str, Mark]]:
    """The name of each field of `ServeFlags` that has a mark of a kind, and the mark."""
    for name, hint in ServeFlags.__annotations__.items():
        yield from ((name, mark) for mark in get_args(hint)[1:] if isinstance(mark, kind))


def flag(name: str) -> str:
    """A field's flag on the command line."""
    return "--" + name.replace("_", "-")
