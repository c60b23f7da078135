"""`distaff …`: the command line. Parses arguments, calls the code that does the work, and turns an error into
one line and an exit code.

Each command imports the heavy modules that it needs, so that help and usage errors appear at once. Logging is
configured here and nowhere else in this process.
"""

import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...model.errors import ConfigError, DistaffError
from ...runtime.capacity.chips import parse_topology
from ...runtime.options import Membership, parse_kernels, parse_mesh
from .. import exit_codes
from ..answering.cors import parse_origin
from ..exit_codes import Failed
from ..logs import configure_logging

if TYPE_CHECKING:
    from ..engines.worker_settings import WorkerSettings

log = logging.getLogger("distaff.server.command.cli")  # `__name__` may be `__main__`

EXIT_CODES = """\
Exit codes: 0 success; 2 wrong usage; 3 the model does not fit; 65 a damaged or unsupported checkpoint;
66 the model is not found; 69 the port is taken, or no server answers; 70 the engine failed for good;
78 a setting that the model or machine does not support, or that would leave the server open.
"""

app = typer.Typer(
    name="distaff",
    help="Serves Llama and Mixtral models with JAX over OpenAI's chat protocol.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _written_as(parse: Callable[[Any], object]) -> Callable[[Any], Any]:
    """A callback that checks an option's syntax: what `parse` refuses is wrong usage."""

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
Quantize = Annotated[Literal["int8"] | None, typer.Option(help="Quantize the linear weights.")]
KvCacheDtype = Annotated[Literal["int8"] | None, typer.Option(help="Quantize keys and values.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


@app.command()
def serve(
    model: ModelName = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    alias: Annotated[list[str] | None, typer.Option(help="Another name for the model; repeatable.")] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Serve the model under any name in a request.")
    ] = False,
    context: Annotated[int | None, typer.Option(min=1, help="The longest sequence, in tokens.")] = None,
    max_input: Annotated[int | None, typer.Option(min=1, help="The longest prompt, in tokens.")] = None,
    default_max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most generated tokens if a request sets no limit.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Sequences decoded at the same time.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Most requests, waiting or running; further ones are refused.")
    ] = None,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Longest wait for a first token, in seconds; else a refusal.")
    ] = 30.0,
    max_pause: Annotated[
        float, typer.Option(min=0, help="Longest wait of a stream whose engine is lost, in seconds.")
    ] = 300.0,
    prefill_tokens: Annotated[int | None, typer.Option(min=1, help="Most prompt tokens in one step.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Data type of the computation.")
    ] = None,
    quantize: Quantize = None,
    kv_cache_dtype: KvCacheDtype = None,
    kv_pages: Annotated[int | None, typer.Option(min=1, help="Size of the KV pool in pages.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="Size of the KV pool in tokens.")] = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="model=N", help="Shard the model over N devices.", callback=_written_as(parse_mesh)
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPERATION=BACKEND",
            help="Choose a kernel's backend; repeatable.",
            callback=_written_as(lambda choices: parse_kernels(choices or ())),
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of process 0, to which the other processes connect."),
    ] = None,
    process_id: Annotated[int, typer.Option(min=0, help="Number of this process; 0 is the leader.")] = 0,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that share one model.")] = 1,
    replicas: Annotated[int, typer.Option(min=1, help="Engines, each with its own devices.")] = 1,
    no_prefix_cache: Annotated[
        bool, typer.Option("--no-prefix-cache", help="Compute every prompt in full.")
    ] = False,
    no_speculation: Annotated[
        bool, typer.Option("--no-speculation", help="Turn off speculative decoding.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Give equal requests equal results under any load.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Folder for the profiles of POST /start_profile and /stop_profile."
        ),
    ] = None,
    revision: Revision = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A Jinja file that replaces the model's template."),
    ] = None,
    tool_format: Annotated[
        Literal["hermes", "llama3", "mistral", "mistral-args"] | None,
        typer.Option(help="How the model writes tool calls; by default its template decides."),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Answer POST /v1/embeddings with mean hidden states.")
    ] = False,
    api_keys: Annotated[
        Path | None, typer.Option(help="A file of API keys, one per line; read again when it changes.")
    ] = None,
    auth: Annotated[
        Literal["keys", "none"], typer.Option(help="`none` accepts requests without a key.")
    ] = "keys",
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Accept requests from web pages of https://app.example.com, say; repeatable.",
            callback=_written_as(lambda origins: [parse_origin(each) for each in origins or ()]),
        ),
    ] = None,
    any_origin_with_keys: Annotated[
        bool,
        typer.Option("--any-origin-with-keys", help="Allow `--allow-origin '*'` together with API keys."),
    ] = False,
    health_when_ready: Annotated[
        bool, typer.Option("--health-when-ready", help="GET /health answers like GET /ready.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unknown parameters, as OpenAI does.")
    ] = False,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option()] = "info",
) -> None:
    """Serve a model over HTTP."""
    from ...checkpoints.sources import check
    from ..engines.worker_settings import WorkerSettings
    from ..keys import configured_keys
    from .exposure import check_exposure, check_origins, warn_of_exposure
    from .listener import address_of, listen

    configure_logging(log_level.upper())
    worker = WorkerSettings(
        model=model,
        revision=revision,
        context=context,
        max_input=max_input,
        slots=slots,
        prefill_tokens=prefill_tokens,
        kv_pages=kv_pages,
        kv_tokens=kv_tokens,
        dtype=dtype,
        quantize=quantize,
        kv_cache_dtype=kv_cache_dtype,
        mesh=mesh,
        kernels=tuple(kernel or ()),
        coordinator=coordinator,
        process_id=process_id,
        num_processes=num_processes,
        replicas=replicas,
        prefix_cache=not no_prefix_cache,
        speculation=not no_speculation,
        deterministic=deterministic,
        profile=str(profile.resolve()) if profile else None,
        log_level=log_level.upper(),
    )
    _check_together(worker)
    check(model)
    if process_id > 0:
        from ..worker.follower import become_follower

        become_follower(worker)
    keys = configured_keys(api_keys, os.environ)
    check_exposure(host, keys, auth)
    origins = tuple(parse_origin(each) for each in allow_origin or ())
    check_origins(origins, keys, any_origin_with_keys)
    with listen(host, port) as listener:
        warn_of_exposure(address_of(listener), auth)
        from ..progress import progress_display
        from ..settings import ServerSettings
        from .serve import WebProcess, text_loader

        WebProcess(
            ServerSettings(
                model=served_name(model),
                aliases=tuple(alias or ()),
                any_model=any_model,
                keys=keys,
                allow_origins=origins,
                default_max_tokens=default_max_tokens,
                strict=strict,
                embeddings=embeddings,
                profiles=profile is not None,
                max_concurrent=max_concurrent,
                max_wait=max_wait,
                max_pause=max_pause,
                health_when_ready=health_when_ready,
            ),
            [
                [sys.executable, "-m", "distaff.server.worker.main", worker.as_replica(number).to_argument()]
                for number in range(replicas)
            ],
            listener,
            text_loader(chat_template, tool_format),
            progress_display(),
            restarts=coordinator is None,
        ).run()


def _check_together(settings: "WorkerSettings") -> None:
    """Refuses flags that exclude each other."""
    if settings.kv_pages is not None and settings.kv_tokens is not None:
        raise typer.BadParameter("--kv-pages and --kv-tokens exclude each other")
    if settings.coordinator is None:
        if settings.num_processes > 1 or settings.process_id > 0:
            raise typer.BadParameter("--num-processes and --process-id need --coordinator HOST:PORT")
        return
    if settings.replicas > 1:
        raise typer.BadParameter("--replicas and --coordinator exclude each other")
    try:
        Membership(
            coordinator=settings.coordinator,
            process=settings.process_id,
            processes=settings.num_processes,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def endpoint() -> object:
    """Serve a model with the environment variables of text-generation-inference.

    MODEL_ID, PORT, MAX_INPUT_LENGTH, MAX_TOTAL_TOKENS and others; see docs/container.md.
    """
    from .endpoint import ignored, serve_arguments

    configure_logging("INFO")
    words = serve_arguments(os.environ)
    log.info("arguments from the environment: distaff %s", shlex.join(words))
    if names := ignored(os.environ):
        log.warning("ignored environment variables: %s", ", ".join(names))
    return app(words, standalone_mode=False)


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="As for `distaff serve`, or a config.json; needs no weights."),
    ],
    topology: Annotated[
        str,
        typer.Option(
            metavar="CHIP:SHAPE", help="Such as v5e:2x4, h100:8, cpu:4.", callback=_written_as(parse_topology)
        ),
    ],
    quantize: Quantize = None,
    kv_cache_dtype: KvCacheDtype = None,
    context: Annotated[int | None, typer.Option(min=1, help="The longest sequence, in tokens.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Sequences decoded at the same time.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a typical prompt.")] = 1024,
    completion: Annotated[int, typer.Option(min=1, help="Tokens of a typical reply.")] = 256,
    memory: Annotated[float | None, typer.Option(min=0.001, help="Memory of a device in GB.")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="Memory bandwidth in GB/s.")] = None,
    flops: Annotated[float | None, typer.Option(min=0.001, help="Compute of a device in TFLOP/s.")] = None,
    compile: Annotated[
        bool, typer.Option(help="Compile for TPUs if libtpu is installed; takes a minute or two.")
    ] = True,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Plot the sweep over streams into this file.")
    ] = None,
) -> int:
    """Estimate a model's memory and speed on devices that are not here."""
    configure_logging("WARNING")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ...checkpoints.outline import read_outline
    from ...runtime.capacity.planning import make_plan
    from ...runtime.capacity.sizing import Wishes
    from .plan import show

    config = read_outline(model, revision=revision)
    wishes = Wishes(
        topology=parse_topology(topology),
        int8=quantize == "int8",
        int8_cache=kv_cache_dtype == "int8",
        context=context,
        slots=slots,
        prompt=prompt,
        completion=completion,
        memory=memory and memory * 1e9,
        bandwidth=bandwidth and bandwidth * 1e9,
        rate=flops and flops * 1e12,
        compile=compile,
    )
    try:
        found = make_plan(served_name(model), config, wishes)
    except ConfigError as error:
        raise Failed(str(error), exit_codes.REFUSED_SETTING) from None
    return show(found, as_json=as_json, plot=plot)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="As MODEL for `distaff serve`.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    quantize: Quantize = None,
    revision: Revision = None,
) -> None:
    """Convert any checkpoint to a store, which loads fastest."""
    configure_logging("INFO")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ...checkpoints import convert as write_store
    from ...checkpoints import resolve
    from ..progress import progress_display

    display = progress_display()
    try:
        found = resolve(source, revision=revision, progress=display.show)
        write_store(found, destination, display.show, int8=quantize == "int8")
    finally:
        display.close()
    print(destination)


@app.command()
def chat(
    model: ModelName = None,
    url: Annotated[
        str | None, typer.Option(help="A running server; by default one is started for MODEL.")
    ] = None,
) -> None:
    """Chat with a model in the terminal; also reads lines from a pipe.

    The environment variable DISTAFF_API_KEY holds the key for a server that needs one.
    """
    from ...checkpoints.sources import check
    from .chat_client import ChatClient
    from .own_server import own_server
    from .terminal_chat import chat_in_terminal

    if url and model:
        raise Failed("MODEL and --url exclude each other", exit_codes.USAGE)
    configure_logging("WARNING")
    if url:
        chat_in_terminal(ChatClient(url, os.environ.get("DISTAFF_API_KEY")))
        return
    check(model)
    with own_server(model) as (address, key):
        chat_in_terminal(ChatClient(address, key))


@app.command()
def models() -> None:
    """List the bundled models and the models in the caches."""
    from .inventory import inventory

    for line in inventory():
        print(line)


@app.command()
def version() -> None:
    """Print the versions that matter in a bug report."""
    from ..versions import versions

    for name, number in versions().items():
        print(f"{name} {number}")


def served_name(model: str | None) -> str:
    """The id that a model is served under: the last part of a path, or else the name as given."""
    from ...checkpoints.sources import bundled

    if model is None:
        return bundled()[0].name
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def main() -> None:
    """The console entry point."""
    sys.exit(run(lambda: app(standalone_mode=False)))


def run(command: Callable[[], object]) -> int:
    """Runs a command; an error becomes one line on stderr, and its exit code is returned."""
    try:
        result = command()
        return result if isinstance(result, int) else exit_codes.OK
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        return _report(f"{message}; see distaff --help", exit_codes.USAGE)
    except DistaffError as error:
        return _report(str(error), exit_codes.of(error))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return exit_codes.OK


def _report(message: str, code: int) -> int:
    print("distaff:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
