"""`distaff …`: the command line. Parses arguments, calls the code that does the work, and turns an error into
one line and an exit code.

Each command imports the heavy modules that it needs, so that help and usage errors appear at once. Logging is
configured here and nowhere else in this process.
"""

import inspect
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ...model.errors import ConfigError, DistaffError
from ...runtime.capacity.chips import parse_topology
from .. import exit_codes
from ..bench.flags import BenchFlags
from ..exit_codes import Failed
from ..flags import (
    Context,
    KvCacheDtype,
    ModelName,
    PlannedQuantize,
    Quantize,
    Revision,
    ServeFlags,
    Slots,
    written_as,
)
from ..logs import configure_logging
from .bench import bench
from .pack import PackFlags, pack

log = logging.getLogger("distaff.server.command.cli")  # `__name__` may be `__main__`

EXIT_CODES = """\
Exit codes: 0 success; 1 some lines of a batch failed; 2 wrong usage; 3 the model does not fit; 65 a
damaged or unsupported checkpoint; 66 the model is not found; 69 the port is taken, or no server answers;
70 the engine failed for good; 74 the output cannot be written; 78 a setting that the model or machine does
not support, or that would leave the server open.
"""

app = typer.Typer(
    name="distaff",
    help="Serves Llama and Mixtral models with JAX over OpenAI's chat protocol.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Flags = TypeVar("Flags")
Result = TypeVar("Result")


def taking(kind: type[Flags]) -> Callable[[Callable[[Flags], Result]], Callable[..., Result]]:
    """Turns a function of a struct into a command: typer sees one parameter for each field of `kind`."""

    def decorate(work: Callable[[Flags], Result]) -> Callable[..., Result]:
        def command(**values: Any) -> Result:
            return work(kind(**values))

        command.__name__, command.__doc__ = work.__name__, work.__doc__
        command.__annotations__ = get_type_hints(kind, include_extras=True)
        command.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]  # typer reads it
        return command

    return decorate


@app.command()
@taking(ServeFlags)
def serve(flags: ServeFlags) -> None:
    """Serve a model over HTTP."""
    from ...checkpoints.sources import check
    from ..keys import configured_keys
    from .exposure import check_exposure, check_origins, parse_origins, warn_of_exposure
    from .listener import address_of, listen
    from .traces import configured_traces

    configure_logging(flags.log_level.upper(), format=flags.log_format)
    flags.check_together()
    origins = parse_origins(flags.allow_origin or ())
    check(flags.model)
    if flags.process_id > 0:
        from ..worker.follower import become_follower

        become_follower(flags)
    keys = configured_keys(flags.api_keys, os.environ)
    traces = configured_traces(os.environ)
    check_exposure(flags.host, keys, flags.auth)
    check_origins(origins, keys, flags.any_origin_with_keys)
    with listen(flags.host, flags.port) as listener:
        warn_of_exposure(address_of(listener), flags.auth)
        from ..engines.engine_process import start_early
        from .engine_command import engine_commands

        start_early(engine_commands(flags))  # the imports below take a second
        from ..answering.resuming import VARIABLE as RESUME_KEY
        from ..settings import ServerSettings
        from .serve import run_web_process

        settings = ServerSettings(
            model=served_name(flags.model),
            keys=keys,
            allow_origins=origins,
            flags=flags,
            resume_key=os.environ.get(RESUME_KEY) or None,
            traces=traces,
        )
        run_web_process(settings, listener)


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
            metavar="CHIP:SHAPE", help="Such as v5e:2x4, h100:8, cpu:4.", callback=written_as(parse_topology)
        ),
    ],
    quantize: PlannedQuantize = None,
    kv_cache_dtype: KvCacheDtype = None,
    context: Context = None,
    slots: Slots = None,
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
    from ...checkpoints.config_only import read_config_only
    from ...runtime.capacity.planning import make_plan
    from ...runtime.capacity.sizing import PlanOptions
    from .plan import show

    stated = read_config_only(model, revision=revision)
    options = PlanOptions(
        topology=parse_topology(topology),
        quantization=quantize or stated.quantization,
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
        found = make_plan(served_name(model), stated.config, options)
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
    from ..process.progress import progress_display

    display = progress_display()
    try:
        found = resolve(source, revision=revision, progress=display.show)
        write_store(found, destination, display.show, quantize=quantize)
    finally:
        display.close()
    print(destination)


app.command()(taking(PackFlags)(pack))
app.command()(taking(BenchFlags)(bench))


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
def batch(
    source: Annotated[Path, typer.Option("--input", "-i", help="Requests, one a line; - is stdin.")],
    target: Annotated[Path, typer.Option("--output", "-o", help="Results, one a line; - is stdout.")],
    model: Annotated[
        str | None, typer.Option(help="The model to start a server for; by default a bundled one.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="A running server, instead of an own one.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Requests at once; by default the server's slots, else 32."),
    ] = None,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Sort the output by the input when all lines are done.")
    ] = False,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAGS]", help="Of `distaff serve`, for the own server.")
    ] = None,
) -> int:
    """Answer a file of requests in the format of OpenAI's batches; continue it if it was interrupted.

    The environment variable DISTAFF_API_KEY holds the key for a server that needs one.
    """
    from ..process.progress import progress_display
    from .batch import check_files, run_batch
    from .batch_server import batch_client

    if url and (model or flags):
        raise Failed("--url excludes --model and FLAGS", exit_codes.USAGE)
    configure_logging("INFO")
    check_files(source, target, ordered=ordered)
    client = batch_client(model, url, flags or (), concurrency)
    return run_batch(source, target, client, progress_display(), ordered=ordered)


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
