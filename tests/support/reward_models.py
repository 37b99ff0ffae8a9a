"""Models of the reward for tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ray_train.estimators import LoggedRows
from ray_train.estimators_basis import ActionBasis
from ray_train.estimators_reward import ActionValueModel


class TableModel(ActionValueModel):
    """``q̂(s_i, a)`` as a table [N, A, R], for rows whose user number is their place in it."""

    def __init__(self, table_NAR: npt.NDArray[np.float64]) -> None:
        size = table_NAR.shape[1]
        # Indicators of the actions, scaled to be orthonormal over the grid.
        values = np.eye(size) * np.sqrt(size)
        self.basis = ActionBasis(values, np.arange(size), "a table")
        self._table = table_NAR / np.sqrt(size)

    def coefficients(self, rows: LoggedRows) -> npt.NDArray[np.float64]:
        return self._table[rows.user_N]
