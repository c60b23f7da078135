"""The metrics of several servers as one text: every sample with a label that says whose it is.

Inside a server the label `replica` numbers its engines, so this one is `server`.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "server"


def merged(texts: Mapping[str, str]) -> bytes:
    """One text in Prometheus's format from those of several servers, by their names; empty for none."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Each family once, with the samples of all servers."""
        families: dict[str, Metric] = {}
        for server, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                ours = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for sample in family.samples:
                    ours.samples.append(sample._replace(labels={**sample.labels, LABEL: server}))
        yield from families.values()
