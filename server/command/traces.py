"""OpenTelemetry's environment variables -> where traces are sent. Without them its SDK is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...model.errors import ConfigError

if TYPE_CHECKING:
    from ..tracing import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"


def configured_traces(environment: Mapping[str, str]) -> Traces | None:
    """The exporter that an operator set; None without an endpoint, or where the SDK is disabled.

    Raises:
      ConfigError: another protocol than OTLP over HTTP, or the extra `otel` is not installed.
    """
    endpoint = next((name for name in ENDPOINTS if environment.get(name)), None)
    if endpoint is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    for name in PROTOCOLS:
        if environment.get(name, PROTOCOL) != PROTOCOL:
            raise ConfigError(f"{name} is {environment[name]!r}; expected {PROTOCOL!r}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from ..tracing import Traces
    except ImportError:
        raise ConfigError(f"{endpoint} is set; traces need `pip install 'distaff[otel]'`") from None
    return Traces(OTLPSpanExporter())
