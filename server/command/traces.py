"""OpenTelemetry's environment variables -> where traces are sent. Without them its SDK is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...model.errors import ConfigError

if TYPE_CHECKING:
    from ..tracing import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_CHOICES = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
}
"""What is supported. The third variable has no effect beside the second."""


def configured_traces(environment: Mapping[str, str]) -> Traces | None:
    """The exporter that an operator set; None without an endpoint, or where traces are turned off.

    Raises:
      ConfigError: anything but OTLP over HTTP, or the extra `otel` is not installed.
    """
    given = {name: value for name, value in environment.items() if value}
    endpoint = next((name for name in ENDPOINTS if name in given), None)
    off = given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get("OTEL_TRACES_EXPORTER") == "none"
    if endpoint is None or off:
        return None
    _check(given)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from ..tracing import Traces
    except ImportError:
        raise ConfigError(f"{endpoint} is set; traces need `pip install 'distaff[otel]'`") from None
    return Traces(OTLPSpanExporter())


def _check(given: Mapping[str, str]) -> None:
    general, own = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    for name, expected in _CHOICES.items():
        if given.get(name, expected) != expected and not (name == general and own in given):
            raise ConfigError(f"{name} is {given[name]!r}; expected {expected!r}")
