"""The alert rules of drift: promtool's own check and test, and the names in them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serve.drift_answers import DriftMetrics
from serve.metrics import Metrics
from tests.support.prometheus import exposed, what_is_wrong
from tests.support.surfaces import small_surface

RULES = Path(__file__).parents[3] / "k8s" / "monitoring" / "drift-rules.yaml"
PROMTOOL = shutil.which("promtool")

SERIES = [
    # level: ok for 10 minutes, warn for 60, act for 20, ok again
    {"series": 'puts_drift_level{job="puts"}', "values": "0x9 1x59 2x19 0x20"},
    {"series": 'puts_drift{job="puts",what="score:repin"}', "values": "0.02x9 0.15x59 0.41x19 0.02x20"},
    {"series": 'puts_drift_reference{job="puts"}', "values": "1x200"},
]


def test_the_rules_name_what_the_sidecar_exposes() -> None:
    metrics = Metrics(small_surface())
    DriftMetrics(metrics.registry)
    known = exposed(metrics.exposition().decode())
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) == 3
    assert {rule["alert"]: what_is_wrong(rule["expr"], known) for rule in rules} == {
        rule["alert"]: [] for rule in rules
    }


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine (Debian package prometheus)")
def test_promtool(tmp_path: Path) -> None:
    def fired(name: str, minute: int) -> dict[str, object]:
        return {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}

    rules = {r["alert"]: r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]}

    def expected(name: str, minute: int, index: str | None = None) -> dict[str, object]:
        annotations = {
            k: v.replace("{{ $labels.job }}", "puts") for k, v in rules[name]["annotations"].items()
        }
        if index is not None:
            head, tail = (
                annotations["description"].split("{{", 1)[0],
                annotations["description"].split("}}")[-1],
            )
            annotations["description"] = f"{head}{index}{tail}"
        alert = {"exp_labels": {"job": "puts", **rules[name]["labels"]}, "exp_annotations": annotations}
        return {**fired(name, minute), "exp_alerts": [alert]}

    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": SERIES,
                "alert_rule_test": [
                    fired("PutsDrift", 30),  # for 20 minutes only
                    expected("PutsDrift", 50),
                    fired("PutsDrift", 80),
                    fired("PutsPolicyOutdated", 60),
                    fired("PutsPolicyOutdated", 73),
                    expected("PutsPolicyOutdated", 80, "0.41"),
                    fired("PutsPolicyOutdated", 100),
                    fired("PutsDriftUnwatched", 100),
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps(test))
    for words in (["check", "rules", str(RULES)], ["test", "rules", str(file)]):
        done = subprocess.run(
            [str(PROMTOOL), *words], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
