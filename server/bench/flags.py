"""The flags of `distaff bench`: those of `vllm bench serve` where the thing is the same."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from ...model.errors import ConfigError
from .. import exit_codes
from ..exit_codes import Failed
from ..flags import written_as
from .flag_values import (
    METRICS,
    check_above_zero,
    parse_body,
    parse_concurrency,
    parse_headers,
    parse_limits,
    parse_metrics,
    parse_percentiles,
)

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


class BenchFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `distaff bench`, in the order of its help."""

    more_limits: Annotated[
        list[str] | None,
        typer.Argument(metavar="METRIC:MS", help="More limits after --goodput, as vLLM takes them."),
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(help="The server, such as https://api.example.com; replaces --host and --port."),
    ] = None
    host: Annotated[str, typer.Option(help="The server's address.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")] = 8000
    backend: Annotated[
        Literal["openai", "vllm", "openai-chat"] | None,
        typer.Option(help="Completions (openai, vllm) or chat completions; by default as --endpoint says."),
    ] = None
    endpoint: Annotated[
        str | None, typer.Option(help=f"The path; {COMPLETIONS}, or {CHATS} for openai-chat.")
    ] = None
    model: Annotated[str | None, typer.Option(help="The model's name; the first of the server's list.")] = (
        None
    )
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A header of every request; repeatable.",
            callback=written_as(parse_headers),
        ),
    ] = None
    dataset_name: Annotated[
        Literal["random", "sharegpt", "custom"], typer.Option(help="Where prompts come from.")
    ] = "random"
    dataset_path: Annotated[
        Path | None, typer.Option(dir_okay=False, exists=True, help="The file of sharegpt or custom.")
    ] = None
    random_input_len: Annotated[
        int, typer.Option("--random-input-len", "--input-len", min=1, help="Tokens of a random prompt.")
    ] = 1024
    random_output_len: Annotated[
        int | None,
        typer.Option(
            "--random-output-len",
            "--output-len",
            "--sharegpt-output-len",
            "--custom-output-len",
            min=1,
            help="Tokens of an answer; random 128, custom 256, sharegpt as in its file.",
        ),
    ] = None
    random_range_ratio: Annotated[
        float, typer.Option(min=0, max=1, help="Random lengths vary by this part of themselves.")
    ] = 0.0
    random_prefix_len: Annotated[
        int, typer.Option(min=0, help="Tokens that all random prompts begin with, in addition.")
    ] = 0
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests of a load.")] = 1000
    request_rate: Annotated[
        float,
        typer.Option(
            help="Requests per second; inf sends all at once.", callback=written_as(check_above_zero)
        ),
    ] = math.inf
    burstiness: Annotated[
        float,
        typer.Option(
            help="Shape of the gaps: 1 Poisson, below in bursts, above more even.",
            callback=written_as(check_above_zero),
        ),
    ] = 1.0
    max_concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Most requests at a time; several are loads one after another.",
            callback=written_as(parse_concurrency),
        ),
    ] = None
    num_warmups: Annotated[int, typer.Option(min=0, help="Requests before each load that do not count.")] = 0
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and arrival times.")] = 0
    ignore_eos: Annotated[
        bool | None,
        typer.Option(
            help="Ask for answers of full length; by default for random prompts.", show_default=False
        ),
    ] = None
    temperature: Annotated[float | None, typer.Option(min=0, help="The server's default otherwise.")] = None
    extra_body: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="More parameters of every request.", callback=written_as(parse_body)
        ),
    ] = None
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC:MS",
            help="Limits that a good request keeps to, such as ttft:200 tpot:50 e2el:5000.",
            callback=written_as(parse_limits),
        ),
    ] = None
    percentile_metrics: Annotated[
        str,
        typer.Option(help="The metrics to report.", callback=written_as(parse_metrics)),
    ] = ",".join(METRICS)
    metric_percentiles: Annotated[
        str, typer.Option(help="Percentiles of each metric.", callback=written_as(parse_percentiles))
    ] = "99"
    save_result: Annotated[bool, typer.Option("--save-result", help="Write a JSON file.")] = False
    save_detailed: Annotated[
        bool, typer.Option("--save-detailed", help="Write it with the figures of each request.")
    ] = False
    result_dir: Annotated[Path | None, typer.Option(file_okay=False, help="Write it into this folder.")] = (
        None
    )
    result_filename: Annotated[str | None, typer.Option(help="Write it under this name.")] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Plot the sweep, or the distributions of one load, into this file."
        ),
    ] = None
    disable_tqdm: Annotated[bool, typer.Option("--disable-tqdm", help="Show no progress.")] = False

    def check_together(self) -> None:
        """Checks what no flag alone decides.

        Raises:
          Failed: flags that exclude or need each other, or a wrong limit among the arguments.
        """
        for wrong in self._contradictions():
            raise Failed(wrong, exit_codes.USAGE)
        _ = self.limits

    def _contradictions(self) -> Iterator[str]:
        if self.more_limits and not self.goodput:
            yield f"unexpected argument {self.more_limits[0]!r}; limits follow --goodput"
        if self.dataset_name == "random" and self.dataset_path:
            yield f"--dataset-path {self.dataset_path} needs --dataset-name sharegpt or custom"
        if self.dataset_name != "random" and not self.dataset_path:
            yield f"--dataset-name {self.dataset_name} needs --dataset-path"
        if self.endpoint and not self.endpoint.endswith("/completions"):
            yield f"--endpoint {self.endpoint}: expected a path that ends with /completions"
        if self.endpoint and self.backend and self.chats != self.endpoint.endswith("/chat/completions"):
            yield f"--endpoint {self.endpoint} and --backend {self.backend} exclude each other"

    @property
    def chats(self) -> bool:
        """Whether requests are chat completions."""
        if self.backend:
            return self.backend == "openai-chat"
        return (self.endpoint or "").endswith("/chat/completions")

    @property
    def path(self) -> str:
        """The path of every request."""
        return self.endpoint or (CHATS if self.chats else COMPLETIONS)

    @property
    def url(self) -> str:
        """The server's, without the `/v1` with which the paths begin."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.base_url or f"http://{host}:{self.port}").rstrip("/").removesuffix("/v1")

    @property
    def limits(self) -> dict[str, float]:
        """All limits of good requests, in milliseconds.

        Raises:
          Failed: one that is written wrongly.
        """
        try:
            return parse_limits([*(self.goodput or ()), *(self.more_limits or ())])
        except ConfigError as error:
            raise Failed(str(error), exit_codes.USAGE) from None

    @property
    def saves(self) -> bool:
        """Whether a JSON file is written."""
        return bool(self.save_result or self.save_detailed or self.result_dir or self.result_filename)
