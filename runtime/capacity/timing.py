"""The best possible speed: the steps of a typical request, at the roofline."""

from collections.abc import Iterator

from ..device.buckets import choose
from .report import Rate, Step
from .roofline import StepTime, step_time
from .sizing import Sizing
from .work import Span, Work


class Timing:
    """The times of an engine of given sizes."""

    def __init__(self, sizing: Sizing) -> None:
        self._sizing = sizing
        self._options = sizing.options
        self._chunk_list = list(self._chunks())

    @property
    def first_token(self) -> float:
        """Seconds of all steps of one prompt, without other requests in them."""
        return sum(self._time(work).total for _, work in self._chunk_list)

    def steps(self) -> tuple[Step, ...]:
        """Decoding with as many streams as fit, and each chunk of a prompt."""
        decode = self._decoding(self.streams()[-1])
        return tuple(_step(name, work, self._time(work)) for name, work in [decode, *self._chunk_list])

    def rates(self) -> tuple[Rate, ...]:
        """The rates for all numbers of streams that have a compiled step."""
        return tuple(map(self._rate, self.streams()))

    def streams(self) -> list[int]:
        """The numbers of streams that have a compiled step and fit in the pool."""
        buckets = self._sizing.shapes.buckets()
        sizes = sorted({bucket.rows for bucket in buckets if bucket.kind == "decode"})
        held = self._sizing.sequences(self._options.prompt + self._options.completion)
        return [size for size in sizes if size <= held] or sizes[:1]

    @property
    def length(self) -> int:
        """Tokens of a sequence half way through its completion."""
        return self._options.prompt + self._options.completion // 2

    def _decoding(self, streams: int) -> tuple[str, Work]:
        work = self._sizing.costs.decode([self.length] * streams)
        return f"decode, {streams} at {self.length} tokens", work

    def _chunks(self) -> Iterator[tuple[str, Work]]:
        """The steps of one prompt, each padded to its bucket."""
        shapes, prompt = self._sizing.shapes, self._options.prompt
        for start in range(0, prompt, shapes.budget):
            end = min(start + shapes.budget, prompt)
            bucket = choose(shapes.buckets(), "mixed", end - start)
            spans: list[Span] = [(end - start, end)]
            work = self._sizing.costs.step(spans, tokens=bucket.tokens, sampled=bucket.rows)
            yield f"prompt, tokens {start} to {end}", work

    def _time(self, work: Work) -> StepTime:
        return step_time(work, self._sizing.chip, self._options.topology.size)

    def _rate(self, streams: int) -> Rate:
        """The rate if each prompt has its own steps, without decode rows, and then all decode together."""
        token, completion = self._time(self._decoding(streams)[1]).total, self._options.completion
        sustained = streams * completion / (completion * token + streams * self.first_token)
        return Rate(
            streams=streams,
            token=token,
            speed=streams / token,
            sustained=sustained,
            chip=sustained / self._options.topology.size,
        )


def _step(name: str, work: Work, time: StepTime) -> Step:
    return Step(
        name=name,
        memory=time.memory,
        compute=time.compute,
        links=time.links,
        total=time.total,
        bound=time.bound,
        bytes=dict(work.bytes),
        operations=dict(work.operations),
    )
