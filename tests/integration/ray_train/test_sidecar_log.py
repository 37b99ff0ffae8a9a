"""The sidecar's own decision log, written by its writer, through join, validate and experiment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_train.cli import main
from ray_train.experiment_report import load_experiment
from serve.decision_log import DecisionLog
from tests.support.decisions import STATE, SURFACE, answer_of, log_config, request_of
from tests.support.logged_decisions import write_parts
from triton_models.decision_format import event_schema
from triton_models.encoding import encode_state

pytestmark = pytest.mark.usefixtures("ray_cluster")

REQUESTS = 300


def answer(number: int) -> dict[str, object]:
    """Every third request explores; the others are dealt to a static arm and to the network's."""
    if number % 3 == 0:
        action = number % SURFACE.num_actions
        weights = dict(zip(SURFACE.controlled_heads, SURFACE.actions[action].tolist(), strict=True))
        chance = 1.0 / SURFACE.num_actions
        drawn = {"action": action, "weights": weights, "propensity": chance}
        return answer_of(source="exploration", arm="knee", scalarization=None, values=None, **drawn)
    if number % 3 == 1:
        return answer_of(source="static", arm="static", scalarization=None, action=None, values=None)
    if number % 5 == 0:
        return answer_of(source="production", reason="late", arm="knee", action=None, values=None)
    return answer_of(arm="knee")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sidecar")
    (folder / "surface.yaml").write_text(SURFACE.to_yaml())
    log = DecisionLog(SURFACE, log_config(folder / "decisions"))
    tensors = encode_state(SURFACE, STATE)
    for number in range(REQUESTS):
        request = request_of(f"r{number}", user_id=f"u{number % 50}", cohort="core")
        # The fourth exploration's state could not be encoded: logged, and of no use to learn from.
        given = {} if number == 9 else tensors
        assert log.record(request, answer(number), route="rank", tensors=given)
    log.close()
    liked = np.flatnonzero(np.random.default_rng(0).random(REQUESTS) < 0.5)
    moment = datetime.now(UTC) + timedelta(seconds=30)
    rows = [{"request_id": f"r{i}", "timestamp": moment, "event": "repin"} for i in liked]
    write_parts(pa.Table.from_pylist(rows, schema=event_schema()), folder / "events")
    return folder


def inputs(world: Path) -> list[str]:
    tomorrow = (datetime.now(UTC) + timedelta(days=1, hours=2)).isoformat()
    named = ["--decisions", str(world / "decisions"), "--events", str(world / "events"), "--as-of", tomorrow]
    return [*named, "--surface", str(world / "surface.yaml")]


def test_explored_decisions_become_a_log_that_validates(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["join", *inputs(world), "--out", str(world / "logs")]) == 0
    assert "left_out_missing_field" in capsys.readouterr().out
    surface = str(world / "surface.yaml")
    assert main(["validate", str(world / "logs"), "--surface", surface, "--max-bad-share", "0"]) == 0
    log = pq.read_table(world / "logs")
    assert log.num_rows == REQUESTS // 3 - 1
    first = next(row for row in log.to_pylist() if row["request_id"] == "r0")
    assert first["propensity"] == pytest.approx(1 / SURFACE.num_actions)
    assert [first["weight_repin"], first["weight_p2p"]] == SURFACE.actions[0].tolist()
    assert first["history_action"] == STATE["history"]["action"]


def test_the_others_are_the_experiment(world: Path) -> None:
    assert main(["experiment", *inputs(world), "--out", str(world / "experiment")]) == 0
    found = load_experiment(world / "experiment")
    assert found.arms == ("static", "knee")
    assert found.decision_counts == {"analysed": 200, "explored": 100}
    cell = found.cell("knee")
    assert cell is not None
    assert cell.fallback_share == pytest.approx(0.2)
