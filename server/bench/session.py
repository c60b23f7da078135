"""One call of `distaff bench`: finds out about the server, applies the loads, collects their figures."""

import gc
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import exit_codes
from ..exit_codes import Failed
from ..quotas.keys_file import is_plain
from .flag_values import parse_body, parse_concurrency, parse_headers, parse_metrics, parse_percentiles
from .flags import BenchFlags
from .http_client import HttpClient
from .load import Outcome, Pace, apply
from .prompts import Custom, Lengths, Prompts, Sample, ShareGpt, random_prompts
from .record import Record
from .summary import detailed, summarise
from .target import Target, first_model

KEY_VARIABLE = "OPENAI_API_KEY"
_DEFAULT_OUTPUT = 128
"""Tokens of an answer to a random prompt, as in vLLM."""
_PROBE, _WARM, _LOAD, _ARRIVALS = range(4)
"""What random numbers are drawn for: no two uses share them."""


@dataclass(frozen=True, slots=True)
class Level:
    """One load and its figures, under vLLM's names."""

    outcome: Outcome
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Session:
    """What was measured.

    Attributes:
      title: the server, the model and the prompts, in words. levels: one for each limit of concurrency.
    """

    title: str
    levels: list[Level]

    @property
    def completed(self) -> int:
        """How many requests succeeded."""
        return sum(level.figures["completed"] for level in self.levels)


async def measure_all(flags: BenchFlags) -> Session:
    """Applies all loads, one after another, until an interrupt.

    Raises:
      Failed: no server answers, or it refuses the first request; nothing has been measured then.
    """
    client = HttpClient(flags.url, _headers(flags))
    try:
        return await _measure_all(flags, await _target(flags, client))
    finally:
        client.close()


async def _measure_all(flags: BenchFlags, target: Target) -> Session:
    prompts = await _prompts(flags, target)
    (probe,) = await prompts.draw(1, _random(flags, 0, _PROBE))
    await target.check(probe.prompt, probe.output)
    limits = parse_concurrency(flags.max_concurrency)
    drawn = [await _draw(flags, prompts, number) for number in range(len(limits))]
    session = Session(f"{target.model} at {target.client.url}{target.endpoint}; {prompts.described}", [])
    for number, (concurrency, (warm, samples)) in enumerate(zip(limits, drawn, strict=True)):
        if (await _apply(flags, target, warm, Pace(concurrency), number)).interrupted:
            break
        pace = Pace(concurrency, flags.request_rate, flags.burstiness)
        outcome = await _apply(flags, target, samples, pace, number)
        session.levels.append(Level(outcome, _figures(flags, target, outcome)))
        if outcome.interrupted:
            break
    return session


async def _draw(flags: BenchFlags, prompts: Prompts, number: int) -> tuple[list[Sample], list[Sample]]:
    """The samples that warm up for a load, and those of the load."""
    return (
        await prompts.draw(flags.num_warmups, _random(flags, number, _WARM)),
        await prompts.draw(flags.num_prompts, _random(flags, number, _LOAD)),
    )


def _random(flags: BenchFlags, level: int, use: int) -> np.random.Generator:
    return np.random.default_rng([flags.seed, level, use])


async def _apply(
    flags: BenchFlags, target: Target, samples: Sequence[Sample], pace: Pace, number: int
) -> Outcome:
    """A load of some samples, with a progress bar on a terminal."""
    requests = [(target.body(sample.prompt, sample.output), sample) for sample in samples]

    async def send(request: tuple[bytes, Sample], due: float) -> Record:
        body, sample = request
        return await target.send(body, Record(due, wanted=sample.output, given=sample.tokens))

    gc.collect()
    gc.freeze()  # no pause for the prompts
    name = "all at once" if pace.concurrency is None else f"concurrency {pace.concurrency}"
    with tqdm(
        total=len(requests), desc=name, unit="req", disable=True if flags.disable_tqdm else None
    ) as bar:
        return await apply(
            send, requests, pace, _random(flags, number, _ARRIVALS), lambda record: bar.update()
        )


async def _target(flags: BenchFlags, client: HttpClient) -> Target:
    extra: dict[str, Any] = {} if flags.temperature is None else {"temperature": flags.temperature}
    if _ignores_eos(flags):
        extra["ignore_eos"] = True
    extra |= parse_body(flags.extra_body)
    model = flags.model or await first_model(client)
    return Target(client, flags.path, flags.chats, model, extra)


def _ignores_eos(flags: BenchFlags) -> bool:
    return flags.dataset_name == "random" if flags.ignore_eos is None else flags.ignore_eos


def _headers(flags: BenchFlags) -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "")
    if not is_plain(key):
        raise Failed(f"{KEY_VARIABLE} has a character that is not visible ASCII", exit_codes.USAGE)
    return ({"Authorization": f"Bearer {key}"} if key else {}) | parse_headers(flags.header)


async def _prompts(flags: BenchFlags, target: Target) -> Prompts:
    path, output = flags.dataset_path, flags.random_output_len
    if path and flags.dataset_name == "custom":
        return Custom(path, output)
    if path:
        return ShareGpt(path, output, target)
    lengths = Lengths(
        flags.random_input_len, output or _DEFAULT_OUTPUT, flags.random_range_ratio, flags.random_prefix_len
    )
    return await random_prompts(target, lengths, flags.seed)


def _figures(flags: BenchFlags, target: Target, outcome: Outcome) -> dict[str, Any]:
    """The figures of a load, after the settings that vLLM writes before them, and further ones."""
    backend = flags.backend or ("openai-chat" if flags.chats else "openai")
    percentiles, metrics = (
        parse_percentiles(flags.metric_percentiles),
        parse_metrics(flags.percentile_metrics),
    )
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": target.model,
        "tokenizer_id": None,
        "num_prompts": flags.num_prompts,
        "request_rate": "inf" if math.isinf(flags.request_rate) else flags.request_rate,
        "burstiness": flags.burstiness,
        "max_concurrency": outcome.pace.concurrency,
        "base_url": target.client.url,
        "endpoint": target.endpoint,
        "dataset_name": flags.dataset_name,
        "seed": flags.seed,
        "ignore_eos": _ignores_eos(flags),
        "goodput_limits_ms": flags.limits,
        **summarise(outcome, percentiles, metrics, flags.limits),
        **(detailed(outcome.records) if flags.save_detailed else {}),
    }
