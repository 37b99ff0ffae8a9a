"""Agreement with the Open Bandit Pipeline (sb-obp 0.5.10) on shared cases."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_train.estimators import (
    ActionMixture,
    ChosenActions,
    Estimator,
    InversePropensity,
    LoggedRows,
    SelfNormalizedIPS,
)
from ray_train.estimators_mips import MarginalizedIPS
from ray_train.estimators_model import DirectMethod, DoublyRobust, ShrunkDR, SwitchDR
from ray_train.evaluation import evaluate
from tests.support.obp_cases import CASES, CELLS, SHRINKAGE, SWITCH, case
from tests.support.reward_models import TableModel

SUPPORT = Path(__file__).parents[2] / "support"
EXPECTED = json.loads((SUPPORT / "obp_expected.json").read_text())


def ours(name: str) -> dict[str, float]:
    data = case(name)
    model = TableModel(data["q_hat"][:, :, None])
    estimators: list[Estimator] = [
        InversePropensity(),
        SelfNormalizedIPS(),
        DirectMethod(model),
        DoublyRobust(model),
        SwitchDR(model, SWITCH),
        ShrunkDR(model, SHRINKAGE),
    ]
    if data["inside"] is not None:
        estimators.append(MarginalizedIPS(CELLS, data["inside"]))
    rows = LoggedRows(
        user_N=np.arange(len(data["action"]), dtype=np.int32),
        action_N=data["action"].astype(np.int16),
        propensity_N=data["propensity"],
        outcome_NR=data["reward"][:, None].astype(np.float32),
    )
    policy: Any = ActionMixture(data["mixture"])
    if data["mixture"] is None:
        policy = ChosenActions(data["chosen"].astype(np.int16))
    return {one.name: float(evaluate(one, rows, [policy], None).value_PR[0, 0]) for one in estimators}


@pytest.mark.parametrize("name", CASES)
def test_our_estimates_are_those_of_the_open_bandit_pipeline(name: str) -> None:
    assert ours(name) == pytest.approx(EXPECTED[name], rel=1e-9, abs=1e-12)


@pytest.mark.skipif("OBP_PYTHON" not in os.environ, reason="OBP_PYTHON names no interpreter with sb-obp")
def test_the_stored_figures_are_what_the_pipeline_says() -> None:
    command = [os.environ["OBP_PYTHON"], str(SUPPORT / "obp_oracle.py")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name, figures in json.loads(told).items():
        assert figures == pytest.approx(EXPECTED[name], rel=1e-12)
