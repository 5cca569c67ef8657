"""The dashboard in docs/: its queries name only what telemetry really emits, under the names that Prometheus sees."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.prometheus")

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from scenarios import SCENARIOS, STEP

from rfx_agent import Price, recovery_graph, step_input
from rfx_agent.events import Judged, Scored
from rfx_agent.records import Usage
from rfx_agent.telemetry import Telemetry

DASHBOARD = json.loads((Path(__file__).parent.parent / "docs" / "grafana.json").read_text(encoding="utf-8"))
PANELS = {x["title"]: x for x in DASHBOARD["panels"] if x["type"] != "row"}
ADDED = {"job", "instance"}
"""Labels that Prometheus adds when it scrapes."""
WORDS = {"sum", "by", "rate", "increase", "histogram_quantile", "clamp_min", "or", "vector"}


@cache
def emitted() -> dict[str, set[str]]:
    """The labels of each sample that Prometheus would scrape, of runs in which everything happens."""
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    hook = Telemetry(meter_provider=provider)
    for name in ("tool", "model-down", "resample", "accept"):
        SCENARIOS[name].recovery(on_event=hook, price=Price(prompt=1, completion=2)).run(
            STEP, SCENARIOS[name].candidate
        )
    SCENARIOS["no-budget-at-all"].recovery(on_event=hook).run(STEP)
    thread: Any = {"configurable": {"thread_id": "t"}}
    asked = recovery_graph(SCENARIOS["budget"].recovery(on_event=hook), checkpointer=InMemorySaver(), interrupts=True)
    asked.invoke(step_input(STEP, "41"), thread)
    asked.invoke(Command(resume={"decisions": [{"type": "reject"}]}), thread)
    hook(Scored("s", "base", 2, 1, Usage(20, 0, 2), 0.2))
    hook(Judged("s", "r0", False, True, 0.5, "judge", Usage(7, 2, 1)))
    hook.close()
    found: dict[str, set[str]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries() -> list[tuple[str, str]]:
    """(title, query) of each target and of each variable that asks Prometheus."""
    asked = [(title, x["expr"]) for title, panel in PANELS.items() for x in panel["targets"]]
    values = [x["query"]["query"] for x in DASHBOARD["templating"]["list"] if x["type"] == "query"]
    return asked + [("a variable", re.sub(r"label_values\((\w+), (\w+)\)", r"sum by (\2) (\1)", x)) for x in values]


def read(query: str) -> list[tuple[str, set[str]]]:
    """(metric, labels that are matched or grouped by) of a query."""
    bare = re.sub(r'"[^"]*"', '""', query)
    grouped = {y.strip() for x in re.findall(r"by \(([^)]*)\)", bare) for y in x.split(",")}
    bare = re.sub(r"\[[^\]]*\]|by \([^)]*\)", "", bare)
    selected = re.findall(r"([A-Za-z_:][\w:]*)(?:\{([^}]*)\})?", bare)
    found = []
    for name, matchers in selected:
        if name not in WORDS and not re.search(rf"\{{[^}}]*\b{name}\b[^}}]*\}}", bare):
            found.append((name, {re.split("[=!]", x)[0].strip() for x in matchers.split(",") if x}))
    return [(name, labels | (grouped if len(found) == 1 else set())) for name, labels in found]


@pytest.mark.parametrize(("title", "query"), queries(), ids=lambda x: x[:40])
def test_a_query_names_what_is_emitted(title: str, query: str) -> None:
    named = read(query)
    assert named, query
    for metric, labels in named:
        assert metric in emitted(), f"{title}: no sample is called {metric}"
        assert labels - ADDED <= emitted()[metric], f"{title}: {metric} has no such label"


def test_a_name_that_is_not_emitted_is_found() -> None:
    assert read('sum by (le) (rate(rfx_a_bucket{job=~"$job", rfx_b!="c"}[5m])) / rfx_d') == [
        ("rfx_a_bucket", {"job", "rfx_b"}),
        ("rfx_d", set()),
    ]
    assert read('sum by (rfx_x) (rate(rfx_a_total{job="rfx_y"}[$__rate_interval]))') == [
        ("rfx_a_total", {"job", "rfx_x"})
    ]


def test_every_metric_is_on_the_dashboard() -> None:
    families = {
        re.sub(r"_(total|bucket|count|sum|created)$", "", x) for x in emitted() if x.startswith(("rfx_", "gen_"))
    }
    shown = {re.sub(r"_(total|bucket|count|sum)$", "", name) for _, query in queries() for name, _ in read(query)}
    assert families == shown


def test_labels_are_names_of_few_values() -> None:
    """No id of a step, a run or an operation, and nothing that was said, is a label."""
    ids = {"rfx_step_id", "rfx_run_id", "rfx_operation", "rfx_rollout", "rfx_tag", "rfx_attempt"}
    assert not ids & set().union(*emitted().values())


def test_it_can_be_imported() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"]
    assert "id" not in DASHBOARD  # a number of the instance that it came from
    (source,) = (x for x in DASHBOARD["templating"]["list"] if x["type"] == "datasource")
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    numbers = [x["id"] for x in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    for panel in PANELS.values():
        assert {x["datasource"]["uid"] for x in (panel, *panel["targets"])} == {"${datasource}"}
        assert len({x["refId"] for x in panel["targets"]}) == len(panel["targets"]) > 0
