"""Traces by OpenTelemetry: one span for each request, with a call's queue, prefill and decode as children.

Attributes are those of the HTTP and GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/):
numbers and names, never a text or a key. Spans are exported in batches on a thread of their own, so a
collector that is down costs no request anything. Imports the SDK, so only who traces imports this module.
"""

import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .call_record import CallTimes
from .versions import own_version

_PARENT = "traceparent"
"""The propagator's name for what the header of W3C's Trace Context says."""

Attributes = Mapping[str, str | int | float | bool | list[str]]

_LAST_EXPORT_SECONDS = 2.0
_PROPAGATOR = TraceContextTextMapPropagator()


class Traces:
    """Spans on their way to a collector."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Starts the thread that exports.

        The environment may name the service (`OTEL_SERVICE_NAME`), and sets samplers and batches.
        """
        named = Resource({"service.name": "distaff", "service.version": own_version()})
        resource = Resource.create(named.merge(OTELResourceDetector().detect()).attributes)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("distaff.server", own_version())

    def begin(self, parent: str, method: str, route: str | None, started: float) -> "RequestSpan":
        """The span of a request.

        Args:
          parent: the client's `traceparent`; invalid ones, and an empty one, begin a new trace.
          route: with placeholders for what varies; None for an unknown one.
          started: seconds of `time.perf_counter`.
        """
        return RequestSpan(self._tracer, _PROPAGATOR.extract({_PARENT: parent}), method, route, started)

    def close(self) -> None:
        """Exports what is left, for two seconds at most."""
        last = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        last.start()
        last.join(_LAST_EXPORT_SECONDS)


class RequestSpan:
    """The span of one request.

    Attributes:
      trace_id, span_id: hexadecimal, as in logs. header: the `traceparent` of the answer.
    """

    def __init__(
        self, tracer: Tracer, parent: Context, method: str, route: str | None, started: float
    ) -> None:
        self._clock_start = time.time_ns() - time.perf_counter_ns()
        self._tracer = tracer
        attributes = {"http.request.method": method, **({"http.route": route} if route else {})}
        name, start = f"{method} {route or ''}".rstrip(), self._at(started)
        self._span = tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=start)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self._span))
        context = self._span.get_span_context()
        self.trace_id, self.span_id = format_trace_id(context.trace_id), format_span_id(context.span_id)
        self.header = carrier[_PARENT]

    def describe(self, attributes: Attributes, name: str | None = None) -> None:
        """Adds attributes; changes the span's name."""
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(attributes)

    def end(self, status: int | None, error: str | None = None) -> None:
        """Ends a request. Idempotent.

        Args:
          status: of its answer; None if it has none. error: the reason why it failed.
        """
        if not self._span.is_recording():
            return
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def add_phases(self, times: CallTimes) -> None:
        """Adds the children of a call."""
        computed = times.submitted if times.computed is None else times.computed
        first = times.ended if times.first is None else times.first
        if times.computed is not None:
            self._add("queue", times.submitted, computed)
        self._add("prefill", computed, first)
        if times.first is not None:
            self._add("decode", first, times.ended)

    def _add(self, name: str, start: float, end: float) -> None:
        child = self._tracer.start_span(name, set_span_in_context(self._span), start_time=self._at(start))
        child.end(self._at(end))

    def _at(self, seconds: float) -> int:
        """Nanoseconds since 1970."""
        return self._clock_start + int(seconds * 1e9)
