"""The Grafana dashboard, as data: ``python -m serve dashboard`` writes it.

Kept in the tree as ``k8s/monitoring/grafana-dashboard.json``; tests hold the two equal, and put every query
to a real Prometheus that scrapes a running sidecar and its tritonservers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serve.dashboard_panels import ROWS, Panel

WIDTH = 24
HEIGHT = 8


def queries() -> list[tuple[str, str]]:
    """Title and PromQL of every query, Grafana's variables in it."""
    return [(panel.title, promql) for _, panels in ROWS for panel in panels for promql, _ in panel.queries]


def filled_in(promql: str, *, jobs: str = ".*", interval: str = "1m") -> str:
    """A query as Prometheus is asked it: what Grafana does with the variables."""
    for variable, value in (("$__rate_interval", interval), ("$job", jobs), ("$triton", jobs)):
        promql = promql.replace(variable, value)
    return promql


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        y = _lay(row, panels, y)
    return {
        "uid": "puts-sidecar",
        "title": "PRL-PUTS sidecar",
        "description": "Written by python -m serve dashboard; change it there.",
        "tags": ["puts"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _jobs("job", "Sidecars", "puts_requests_total"),
                _jobs("triton", "Tritonservers", "nv_inference_count"),
            ]
        },
        "panels": panels,
    }


def _lay(row: Sequence[Panel], panels: list[dict[str, Any]], y: int) -> int:
    x = 0
    for panel in row:
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        place = {"x": x, "y": y, "w": panel.width, "h": HEIGHT}
        panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        x += panel.width
    return y + HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for colour, value in panel.steps]
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": source, "expr": promql, "legendFormat": legend}
            for i, (promql, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": None if panel.title == "Value-network servers" else 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": custom,
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"},
    }


def _jobs(name: str, label: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, job)"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard_text() -> str:
    """The dashboard as it is kept in the tree."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
