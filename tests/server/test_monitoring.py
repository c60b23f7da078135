"""The dashboard and the alerts in `deploy/monitoring/`: every metric in them is one that a server exports.

`alerts_test.yml` beside them has the alerts' own tests, for `promtool test rules`.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from distaff.runtime.request import EngineStats
from distaff.server.testing import FakeEngine

from .conftest import Server

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
TARGETS = [
    (panel["title"], target)
    for panel in DASHBOARD["panels"]
    if panel["type"] != "row"
    for target in panel["targets"]
]
PROMETHEUS = {"up": {"job": set(), "instance": set()}}
"""A metric that Prometheus adds for each target."""
ADDED = {"instance", "job"}
"""Labels that Prometheus adds to each sample."""
OPEN_SETS = {"status", "model_name", "le", "replica", "key"}
"""Labels whose values depend on what a server was asked for, and where."""

Exported = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def exported() -> Exported:
    """Each sample's name on a server that has answered one call, with the values of its labels."""
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        stats = EngineStats(total_pages=9, seconds={"plan": 1.0})
        patch.setattr(FakeEngine, "stats", property(lambda self: stats))
        httpx.post(f"{server.url}/v1/completions", json={"model": "tgi", "prompt": "a"}).raise_for_status()
        text = httpx.get(f"{server.url}/metrics").text
    server.close()
    found: Exported = {name: {label: set() for label in labels} for name, labels in PROMETHEUS.items()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def parts(node: Any) -> Iterator[Any]:
    """A query's nodes, each before what it consists of."""
    yield node
    names = ("lhs", "rhs", "expr", "param", "vector_selector")
    below = [getattr(node, name, None) for name in names] + list(getattr(node, "args", None) or ())
    for each in below:
        if each is not None:
            yield from parts(each)


def parsed(query: str) -> list[Any]:
    """The nodes of a query, with a value in place of each variable of the dashboard."""
    query = query.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$model", ".*")
    return list(parts(promql.parse(query)))


def selectors(nodes: list[Any]) -> list[promql.VectorSelector]:
    return [node for node in nodes if isinstance(node, promql.VectorSelector)]


def grouped(nodes: list[Any]) -> set[str]:
    """The labels that results are grouped or matched by."""
    modifiers = [getattr(node, "modifier", None) for node in nodes]
    matchings = [getattr(modifier, "matching", None) for modifier in modifiers]
    return {label for each in (*modifiers, *matchings) for label in getattr(each, "labels", None) or ()}


QUERIES = [
    *(pytest.param(target["expr"], target["legendFormat"], id=title) for title, target in TARGETS),
    *(pytest.param(rule["expr"], "", id=rule["alert"]) for rule in ALERTS),
]


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_a_query_names_what_a_server_exports(exported: Exported, query: str, legend: str) -> None:
    """Metrics, labels, and the values of labels that have a closed set of them."""
    nodes = parsed(query)
    assert selectors(nodes)
    known = set(ADDED)
    for selector in selectors(nodes):
        assert selector.name in exported, selector.name
        labels = exported[selector.name]
        known |= set(labels)
        for matcher in selector.matchers.matchers:
            assert matcher.name in set(labels) | ADDED, (selector.name, matcher.name)
            if matcher.name not in OPEN_SETS | ADDED:
                assert set(matcher.value.split("|")) <= labels[matcher.name], matcher.value
    assert grouped(nodes) | set(re.findall(r"{{(\w+)}}", legend)) <= known


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_counters_are_read_as_rates_and_gauges_are_not(exported: Exported, query: str, legend: str) -> None:
    """A counter's own value says nothing, and a gauge has no rate."""
    nodes = parsed(query)
    inside = [node.vector_selector.name for node in nodes if isinstance(node, promql.MatrixSelector)]
    for selector in selectors(nodes):
        counts = re.search("_(total|bucket|sum|count)$", str(selector.name)) is not None
        assert (selector.name in inside) == counts, selector.name


def test_every_panel_of_the_dashboard_is_of_the_chosen_source_and_servers() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "model", "instance"}
    for title, target in TARGETS:
        assert target["datasource"]["uid"] == "${datasource}", title
        assert 'instance=~"$instance"' in target["expr"], title
        assert set(re.findall(r"\$(\w+)", target["expr"])) <= names | {"__rate_interval"}, title
        if "vllm:" in target["expr"]:
            assert 'model_name=~"$model"' in target["expr"], title


def test_the_variables_of_the_dashboard_are_labels_of_metrics(exported: Exported) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert found
        (selector,) = selectors(parsed(found[1]))
        assert found[2] in set(exported[str(selector.name)]) | ADDED


def test_metrics_of_vllms_names_are_those_of_distaffs_jobs() -> None:
    """Real vLLM servers have them, too. Panels are of the instances that the variable lists."""
    variables = DASHBOARD["templating"]["list"][1:]
    queries = [
        *(rule["expr"] for rule in ALERTS),
        *(re.sub(r"label_values\((.*), \w+\)", r"\1", each["query"]["query"]) for each in variables),
    ]
    named = [each for query in queries for each in selectors(parsed(query)) if "vllm:" in str(each.name)]
    assert len(named) == 5
    for selector in named:
        assert ("job", ".*distaff.*") in [(each.name, each.value) for each in selector.matchers.matchers]
    assert [each["name"] for each in variables if "allValue" in each] == ["model"]


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    """An alert says how bad it is, waits before it calls somebody, and names the section of its own."""
    page = (ROOT / "docs" / "operations.md").read_text()
    _, begin, alerts = page.partition("\n## Alerts\n")
    assert begin
    sections = re.split(r"^### (\w+)$", alerts.partition("\n## ")[0], flags=re.MULTILINE)[1:]
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    assert list(texts) == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning") and re.fullmatch(r"\d+m", rule["for"])
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert set(rule["annotations"]) == {"summary", "runbook_url"}
        assert len(texts[rule["alert"]].split()) > 25, rule["alert"]


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_a_summary_names_labels_that_its_query_keeps(rule: dict[str, Any], exported: Exported) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    nodes = parsed(rule["expr"])
    assert "instance" in used and used <= (grouped(nodes) or set(exported["up"]))


def test_the_alerts_own_tests_are_of_alerts_that_exist() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    named = {each["alertname"] for test in tests for each in test["alert_rule_test"]}
    assert named <= {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("query", ["rate(no_such_metric[5m])", 'sum(up{no_such_label="1"})'])
def test_a_wrong_name_is_noticed(exported: Exported, query: str) -> None:
    check: Callable[..., None] = test_a_query_names_what_a_server_exports
    with pytest.raises(AssertionError):
        check(exported, query, "")
