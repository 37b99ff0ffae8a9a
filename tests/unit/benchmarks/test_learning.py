"""Tables, targets and pictures of ``benchmarks learning``, from cells whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.learning.cells import ALPHAS
from benchmarks.learning.contestants import CONTESTANTS, contestant, static
from benchmarks.learning.features import action_coordinates
from benchmarks.learning.report import write_report
from benchmarks.learning.summaries import against_production, against_static, mean_and_interval, read_cells
from benchmarks.learning.tasks import Task
from benchmarks.learning.verdicts import gate_lines, gate_table, rows_to_reach, target_lines
from benchmarks.learning.vowpal import action_lines, state_lines
from ray_train.learners import LEARNERS
from tests.support.surfaces import small_surface
from triton_models.errors import BenchmarkError

SURFACE = small_surface()
GAIN = 0.02


def cell(learner: str, rows: int, seed: int, share: float, **other: Any) -> dict[str, Any]:
    """Shares equal at all α; production at -2 and uniform at -4 gains below the best static vector."""
    return {
        "feed": "boards",
        "seed": seed,
        "rows": rows,
        "learner": learner,
        "captured": [share] * len(ALPHAS),
        "mean": share,
        "references": {
            "production": [-2.0] * len(ALPHAS),
            "uniform": [-4.0] * len(ALPHAS),
            "gain": [GAIN] * len(ALPHAS),
        },
        "seconds": 1.0,
        "cpu_s": 1.0,
        "load": 1.0,
        "verdict": None,
        **other,
    }


def write(folder: Path, *cells: dict[str, Any]) -> Path:
    (folder / "cells").mkdir()
    for number, one in enumerate(cells):
        (folder / "cells" / f"{number}.json").write_text(json.dumps(one))
    return folder


def curves(at_200_000: float, at_1_000_000: float) -> list[dict[str, Any]]:
    """Five seeds that differ by a constant, so that paired differences have no spread."""
    found = []
    for seed in range(1, 6):
        found += [
            cell("paper", 200_000, seed, 0.1 + seed / 100),
            cell("paper", 1_000_000, seed, 0.3 + seed / 100),
            cell("committee", 200_000, seed, at_200_000 + seed / 100),
            cell("committee", 1_000_000, seed, at_1_000_000 + seed / 100),
        ]
    return found


def test_targets_that_are_reached(tmp_path: Path) -> None:
    # On the logarithm of the rows, 0.33 lies 1/3 of the way from 0.28 to 0.43: 200,000 · 5^(1/3) = 341,995.
    groups = read_cells(write(tmp_path, *curves(0.25, 0.40)))["boards"]
    assert target_lines(groups, "committee") == [
        "L1, 200,000 rows: committee captures 0.280 ± 0.020 (5 seeds; target ≥ 0.20: reached); "
        "above paper by 0.150 ± 0.000, paired (5 seeds; target ≥ 0.12: reached).",
        "L1, 1,000,000 rows: committee captures 0.430 ± 0.020 (5 seeds; target ≥ 0.40: reached); "
        "above paper by 0.100 ± 0.000, paired (5 seeds; target ≥ 0.10: reached).",
        "L1, never below the best static vector beyond noise, 200,000 rows and more: reached; "
        "no single α below.",
        "L2: paper reaches 0.330 with 1,000,000 rows (5 seeds); committee needs about 341,995 "
        "(target ≤ 350,000: reached).",
    ]


def test_targets_that_are_missed_say_so(tmp_path: Path) -> None:
    cells = curves(-0.2, 0.2)
    cells[2]["captured"][0] = -9.0  # one seed's outlier is noise, not a finding
    lines = target_lines(read_cells(write(tmp_path, *cells))["boards"], "committee")
    assert lines[0].count("MISSED") == 2
    assert "committee captures -0.170" in lines[0]
    assert "MISSED at 200,000 rows; single α below: α 0.2 at 200,000" in lines[2]
    assert "α 0.1 at" not in lines[2]
    assert lines[3].endswith("committee has not reached it with 1,000,000: MISSED.")


def test_what_was_not_measured_is_not_judged(tmp_path: Path) -> None:
    one = write(tmp_path, cell("committee", 200_000, 1, 0.5), cell("paper", 1_000_000, 2, 0.3))
    lines = target_lines(read_cells(one)["boards"], "committee")
    assert lines[0] == (
        "L1, 200,000 rows: committee captures 0.500 (1 seed, of 5 wanted; target ≥ 0.20: reached); "
        "paper not measured."
    )
    assert lines[1] == "L1, 1,000,000 rows: not measured for committee."
    assert "not measured for committee over several seeds" in lines[2]
    assert lines[3] == "L2: not measured for committee on the seeds of paper at 1,000,000 rows."


def test_rows_to_reach_is_a_bound_below_the_first_size() -> None:
    assert rows_to_reach({200_000: 0.4, 1_000_000: 0.5}, 0.3) == (200_000.0, True)
    assert rows_to_reach({200_000: 0.4, 1_000_000: 0.5}, 0.6) == (None, False)


def verdict(level: str) -> dict[str, Any]:
    return {"level": level, "text": "as the gate of another version wrote it"}


def test_the_gate_beside_the_truth(tmp_path: Path) -> None:
    null = [
        cell("committee", 200_000, 1, -0.5, feed="boards-null", verdict=verdict("not yet")),
        cell("committee", 200_000, 2, -2.5, feed="boards-null", verdict=verdict("better")),
        cell("static", 200_000, 2, 0.0, feed="boards-null"),
    ]
    # By hand: -0.5 · 2 % and (-0.5 + 2) · 2 %.
    assert against_static(null[0]) == pytest.approx(-0.01)
    assert against_production(null[0]) == pytest.approx(0.03)
    groups = read_cells(write(tmp_path, *null))["boards-null"]
    assert gate_lines(groups) == [
        "Gate, committee, 200,000 rows: 1 of 2 pass; of those, in truth, 1 below the best static vector, "
        "1 below production."
    ]
    assert gate_table(groups)[2:] == [
        "| 200,000 | committee | 1 | not yet | no, needs --force | -1.00% | +3.00% |",
        "| 200,000 | committee | 2 | better | yes | -5.00% | -1.00% |",
    ]


def test_report_of_a_folder(tmp_path: Path) -> None:
    far = cell("obp-nn", 200_000, 1, -3.0)
    null = cell("paper", 200_000, 1, 40.0, feed="boards-null", verdict=verdict("static"))
    text = write_report(write(tmp_path, *curves(0.25, 0.40), far, null))
    assert "| 200,000 | committee | 0.280 ± 0.020 | 5 | 0.26, 0.30 | 0.28 ± 0.02 |" in text
    assert "| | production | -2.000 ± 0.000 | 5 |" in text
    assert "| | uniform | -4.000 ± 0.000 | 5 |" in text
    assert "| | best static vector of the truth | 0 |" in text
    assert text.count("L1, 200,000 rows") == 1  # targets belong to one feed
    # Where there is nothing to gain, no share of it: 40 · 2 %, and 2 gains more above production.
    assert "| 200,000 | paper | 1 | 80.00 | 84.00 |" in text
    assert (tmp_path / "learning.md").read_text() == text
    page = (tmp_path / "learning.html").read_text()
    assert page.count("<svg") == 3  # by rows, by α at two sizes; none where there is no gain to share
    assert ">-3.0</text>" in page  # off the scale, with its value


def test_one_seed_has_no_interval() -> None:
    mean, half = mean_and_interval([0.5])
    assert mean == 0.5
    assert np.isnan(half)


def test_every_learner_of_the_product_takes_part() -> None:
    assert set(LEARNERS) < set(CONTESTANTS)
    with pytest.raises(BenchmarkError, match="learner 'nobody': there are"):
        contestant("nobody")


def task(rows: int = 400, **other: Any) -> Task:
    """Action 3 is the best for everybody under the first λ, action 5 under the second."""
    rng = np.random.default_rng(1)
    action = rng.integers(SURFACE.num_actions, size=rows)
    rewards = np.stack([action == 3, action == 5], axis=1).astype(np.float32)
    log = {
        "action": action.astype(np.int16),
        "rewards": rewards,
        "propensity": np.full(rows, 1.0 / SURFACE.num_actions, dtype=np.float32),
        "user_embedding": np.zeros((rows, SURFACE.state.user_embedding), dtype=np.float32),
    }
    return Task(
        surface=SURFACE,
        log=log,
        later=lambda: log,
        requests={"user_embedding": log["user_embedding"][:7]},
        scalarization_PM=np.array([[1.0, 0.0], [0.0, 1.0]]),
        seed=1,
        **other,
    )


def test_static_gives_everybody_the_best_mean() -> None:
    assert static(task()).chosen_nP.tolist() == [[3, 5]] * 7


def test_the_pipeline_needs_an_interpreter_of_its_own() -> None:
    with pytest.raises(BenchmarkError, match=r"sb-obp==0\.5\.10, then --obp-python"):
        contestant("obp-nn")(task())


def test_the_logged_action_alone_teaches_vowpal_wabbit_the_same() -> None:
    pyvw = pytest.importorskip("vowpalwabbit.pyvw", reason="pip install 'prl-puts[learning]'")
    rng = np.random.default_rng(0)
    states = state_lines(rng.normal(size=(300, 5)).astype(np.float32))
    actions = action_lines(action_coordinates(SURFACE))
    logged, cost = rng.integers(len(actions), size=300).tolist(), (-rng.random(300)).tolist()
    whole, alone = (pyvw.Workspace("--cb_adf --cb_type mtr -q sa --quiet") for _ in range(2))
    for text, a, value in zip(states[:200], logged, cost, strict=False):
        label = f"0:{value:.4f}:{1 / len(actions):.6f} "
        whole.learn([f"shared {text}", *(label * (i == a) + line for i, line in enumerate(actions))])
        alone.learn([f"shared {text}", f"0:{value:.4f}:1 {actions[a]}"])
    for text in states[200:]:
        asked = [f"shared {text}", *actions]
        assert alone.predict(asked) == pytest.approx(whole.predict(asked), abs=1e-5)
    for bandit in (whole, alone):
        bandit.finish()
