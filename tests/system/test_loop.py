"""``benchmarks loop``: one small turn on the real parts, and whether its ends meet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.decisions import read_log
from triton_models.frontier import load_frontier
from triton_models.runs import load_run

REQUESTS = 2000
ARMS = ["static", "personalized"]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.timeout(600)
def test_what_a_turn_decides_logs_learns_and_tests_fits_together(tmp_path: Path) -> None:
    out = tmp_path / "turn"
    command = [sys.executable, "-m", "benchmarks", "loop", "--out", str(out), "--epochs", "1"]
    command += ["--requests", str(REQUESTS), "--test-requests", str(REQUESTS), "--exploration", "0.9"]
    command += ["--budget-ms", "5000"]  # a busy machine uses up the shipped one
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    turn, join = read(out / "turn.json"), read(out / "logs" / "_join.json")
    experiment, frontier = read(out / "experiment" / "experiment.json"), load_frontier(out / "run")
    explored, tested = turn["explored"], turn["tested"]

    # Exploration: its share, every draw of it in the log that validate accepted, with its propensity.
    drawn = explored["sources"]["exploration"]
    assert abs(drawn - 0.9 * REQUESTS) < 5 * 13.4  # a standard deviation of 2,000 draws
    assert turn["joined_rows"] == drawn == join["decision_counts"]["in_the_log"]
    assert sum(join["event_counts"].values()) == explored["events"]
    log = pq.read_table(out / "logs")
    assert set(log["propensity"].to_pylist()) == {1 / 49}
    actions = Counter(zip(log["weight_repin"].to_pylist(), log["weight_p2p"].to_pylist(), strict=True))
    assert len(actions) == 49
    rewarded = sum(int((log[f"reward_{name}"].to_numpy() > 0).sum()) for name in ("repin", "p2p"))
    assert rewarded == sum(join["rows_with_reward"].values()) > 100

    # Decisions say which policy, whose network and which λ they came from.
    decisions = read_log(out / "decisions").to_pylist()
    assert len({row["request_id"] for row in decisions}) == len(decisions) == 2 * REQUESTS
    assert Counter(row["policy_version"] for row in decisions) == {1: REQUESTS, 2: REQUESTS}
    chosen = [row for row in decisions if row["source"] == "value_network"]
    assert len(chosen) == tested["sources"]["value_network"] > 0.3 * REQUESTS
    assert {row["run_id"] for row in chosen} == {frontier.run.run_id}  # the network that this turn learned
    assert {tuple(row["scalarization"]) for row in chosen} == {tuple(turn["scalarization"])}
    assert {row["frontier_fingerprint"] for row in chosen} == {frontier.fingerprint}
    assert {(row["policy_version"], row["arm"]) for row in chosen} == {(2, "personalized")}

    # From so few rows nobody can know that nothing is lost: what is tested is not what is recommended.
    safe = frontier.candidates.get("non_degrading")
    known = (
        safe is not None and safe.lower_bounds_not_negative and load_run(out / "run").manifest.verdict.passed
    )
    assert turn["recommended"] == ("non_degrading" if known else "static"), turn["why"]
    assert turn["operating_point"] in frontier.candidates

    # The experiment finds the arms that the callers saw, and no other requests.
    assert experiment["arms"] == ARMS
    assert experiment["decision_counts"] == {"analysed": REQUESTS, "before_start": REQUESTS}
    assert experiment["event_counts"]["counted"] == tested["events"]
    cells = {c["arm"]: c for c in experiment["cells"] if (c["policy_version"], c["cohort"]) == (None, None)}
    assert {arm: cell["requests"] for arm, cell in cells.items()} == tested["arms"]
    fell_back = sum(tested["reasons"].values()) / tested["arms"]["personalized"]
    assert cells["personalized"]["fallback_share"] == pytest.approx(fell_back)
    (ratio,) = experiment["sample_ratios"]
    assert (ratio["policy_version"], ratio["verdict"]) == (2, "as_declared")
    assert experiment["frontier"]["matches_decisions"]
    # And what they really did, up to the test's own noise: 1.96 standard deviations are half an interval.
    for name in ("repin", "p2p"):
        measured, true = turn["lifts"][name]["measured"], turn["lifts"][name]["true"]
        low, high = measured["interval"]
        assert abs(measured["lift"] - true["lift"]) < 4 * (high - low) / (2 * 1.96), name
