"""How much of a committee's personal contrasts the data support: one factor γ_m per objective.

With the level l(s), the average contrast c̄(a) and the personal contrast d(s, a) = z(s, a) - l(s) - c̄(a) of
:mod:`triton_models.committee`, on rows that were not trained on::

    γ̂_m = argmax_γ  Σ_i log-likelihood of r_im under  σ(β_0 + β_1 (l_im + c̄_im) + γ d_im)
    γ_m  = g_m (1 - min(1, (se_m / g_m)²))   with g_m = γ̂_m clipped to [0, 1]

a calibration slope, then the positive-part James-Stein factor of one coefficient: γ goes to zero, and the
answer to the static contrasts, where the slope cannot be told from zero. A slope above one is taken for
one before, not after: contrasts that are small against their error often have a large slope by chance.

Shape legend: n rows, A actions, M objectives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ray_train.in_process import state_of
from ray_train.ingest import Arrays
from triton_models.committee import CommitteeHead
from triton_models.network import ValueNetwork
from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]

LARGEST = 1.0
"""The shrunk committee never says more than the committee itself."""
MICRO_ROWS = 512
NEWTON_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """Calibration slopes of the personal contrasts."""

    slope_M: FloatArray
    error_M: FloatArray
    """Standard errors, clustered by user."""
    shrunk_M: FloatArray
    """γ, what the committee is set to."""


def shrink_to_data(surface: Surface, network: ValueNetwork, rows: Arrays) -> Slopes | None:
    """Set a committee's average contrasts and γ from rows that it was not trained on; None for others."""
    head = network.head
    if not isinstance(head, CommitteeHead):
        return None
    level_nM, contrast_nM, average_AM = _parts(surface, network, head, rows)
    static_nM = level_nM + average_AM[rows["action"]]
    personal_nM = contrast_nM - average_AM[rows["action"]]
    slopes = calibration_slopes(static_nM, personal_nM, rows["rewards"], rows["user"])
    with torch.no_grad():
        head.average_AM.copy_(torch.from_numpy(average_AM))
        head.personal_M.copy_(torch.from_numpy(slopes.shrunk_M))
    return slopes


@torch.inference_mode()
def _parts(
    surface: Surface, network: ValueNetwork, head: CommitteeHead, rows: Arrays
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Level [n, M], contrast of the logged action [n, M], and the average contrast of every action [A, M]."""
    levels, contrasts, total_AM = [], [], np.zeros(head.shape)
    count = len(rows["action"])
    for start in range(0, count, MICRO_ROWS):
        part = {name: array[start : start + MICRO_ROWS] for name, array in rows.items()}
        z_BAM = (
            head.member_action_logits(network.encoder(state_of(surface, part))).mean(dim=0).double().numpy()
        )
        level_BM = z_BAM.mean(axis=1)
        contrast_BAM = z_BAM - level_BM[:, None]
        levels.append(level_BM)
        contrasts.append(contrast_BAM[np.arange(len(level_BM)), part["action"]])
        total_AM += contrast_BAM.sum(axis=0)
    return np.concatenate(levels), np.concatenate(contrasts), total_AM / count


def calibration_slopes(
    static_nM: FloatArray,
    personal_nM: FloatArray,
    rewards_nM: npt.NDArray[np.float32],
    user_n: npt.NDArray[np.int32],
) -> Slopes:
    """The slopes of the module, by Newton's method, with sandwich errors clustered by user."""
    found = [
        _slope(static_nM[:, m], personal_nM[:, m], rewards_nM[:, m].astype(np.float64), user_n)
        for m in range(static_nM.shape[1])
    ]
    slope_M, error_M = np.array(found).T
    bounded_M = np.clip(slope_M, 0.0, LARGEST)
    share_M = np.divide(error_M, bounded_M, out=np.full_like(slope_M, np.inf), where=bounded_M > 0)
    shrunk_M = bounded_M * (1.0 - np.minimum(1.0, share_M**2))
    return Slopes(slope_M=slope_M, error_M=error_M, shrunk_M=shrunk_M)


def _slope(
    static_n: FloatArray, personal_n: FloatArray, reward_n: FloatArray, user_n: npt.NDArray[np.int32]
) -> tuple[float, float]:
    scale = float(personal_n.std())
    if scale < 1e-9:
        return 0.0, 1.0
    x_n3 = np.stack([np.ones_like(static_n), static_n, personal_n / scale], axis=1)
    beta_3 = np.array([0.0, 1.0, 0.0])
    for _ in range(NEWTON_STEPS):
        p_n = 1.0 / (1.0 + np.exp(-x_n3 @ beta_3))
        information_33 = (x_n3 * (p_n * (1.0 - p_n))[:, None]).T @ x_n3 + 1e-9 * np.eye(3)
        step_3 = np.linalg.solve(information_33, x_n3.T @ (reward_n - p_n))
        beta_3 = beta_3 + step_3
        if np.abs(step_3).max() < 1e-10:
            break
    score_n3 = x_n3 * (reward_n - p_n)[:, None]
    _, cluster_n = np.unique(user_n, return_inverse=True)
    score_U3 = np.stack([np.bincount(cluster_n, weights=score_n3[:, j]) for j in range(3)], axis=1)
    inverse_33 = np.linalg.inv(information_33)
    error = float(np.sqrt((inverse_33 @ (score_U3.T @ score_U3) @ inverse_33)[2, 2]))
    return float(beta_3[2]) / scale, error / scale
