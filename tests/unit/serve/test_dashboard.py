"""The dashboard: its file, its layout, and its queries as far as nothing need run for that."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from serve.cli import main
from serve.dashboard import WIDTH, dashboard, dashboard_text, filled_in, queries
from serve.decision_log_metrics import DecisionLogMetrics
from serve.drift_answers import DriftMetrics
from serve.metrics import Metrics
from tests.support.prometheus import exposed, what_is_wrong
from tests.support.surfaces import small_surface

FILE = Path(__file__).parents[3] / "k8s" / "monitoring" / "grafana-dashboard.json"


def test_the_file_is_what_the_door_writes(tmp_path: Path) -> None:
    assert main(["dashboard", "--out", str(tmp_path / "new.json")]) == 0
    assert FILE.read_text() == (tmp_path / "new.json").read_text() == dashboard_text(), (
        "run python -m serve dashboard --out k8s/monitoring/grafana-dashboard.json"
    )


def test_panels_do_not_overlap_and_every_query_is_asked_for() -> None:
    panels = json.loads(dashboard_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    told = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert told == [promql for _, promql in queries()]
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps([told, panels]))) - variables <= {"__all"}


def test_the_check_of_queries_finds_what_is_wrong() -> None:
    known = {"a": {"job", "x"}, "b_bucket": {"job", "le"}}
    assert what_is_wrong('sum by (x) (rate(a{job="1"}[5m])) / sum(b_bucket)', known) == []
    assert what_is_wrong("sum by (y) (rate(a[5m]))", known) == ["a has no label y"]
    assert what_is_wrong('a{z="1"} or c', known) == ["a has no label z", "there is no metric c"]
    assert what_is_wrong("histogram_quantile(0.9, sum by (le) (a))", known) == ["a has no label le"]
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        what_is_wrong("sum(a", known)


def test_every_metric_of_the_sidecar_is_on_the_dashboard() -> None:
    metrics = Metrics(small_surface())
    DecisionLogMetrics(metrics.registry)
    DriftMetrics(metrics.registry)
    names = {
        family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()
    }
    asked = " ".join(promql for _, promql in queries())
    assert {name for name in names if name not in asked} == set(), (
        "give it a panel in serve/dashboard_panels.py"
    )


def test_queries_name_metrics_of_the_sidecar() -> None:
    metrics = Metrics(small_surface())
    metrics.count_request("rank", 200)
    metrics.in_flight.labels("ranker")
    metrics.late.labels("ranker", "failed")
    metrics.set_link("a:1", 1)
    metrics.count_breaker_turn("value_network", "a:1", "open")
    metrics.policy.count_arm("x")
    DecisionLogMetrics(metrics.registry)
    DriftMetrics(metrics.registry).index.labels("score:x")
    known = exposed(metrics.exposition().decode())
    for title, promql in queries():
        if "nv_" not in promql:
            assert what_is_wrong(filled_in(promql), known) == [], title
