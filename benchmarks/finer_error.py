"""What ``sweep --finer`` assumes, against the exact truth of the simulated feed.

Two questions. How far is the interpolated value of a weight vector between the explored ones from its true
value, ``(Σ_a C[t, a] V(a) - V(t)) / mean V``? And what is to win, ``max_t`` against ``max_a`` of the true
λ·Q, for each request (all knowing: more than any network can get) and for one vector for everybody?

Shape legend: n requests, A explored actions, T finer ones, M objectives, L values of α.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.feed.config import WorldConfig
from benchmarks.feed.world import World
from ray_train.finer import FinerGrid, finer_grid
from triton_models.surface import FloatArray, Surface

CHUNK = 256

ALPHAS = (0.1, 0.25, 0.5)


@dataclass(frozen=True, kw_only=True)
class FinerError:
    """Per objective, relative to the mean value of the finer grid."""

    rms_M: FloatArray
    """Over weight vectors between the explored ones."""
    largest_M: FloatArray
    upper_rms_M: FloatArray
    """Over those with no weight below the second smallest explored value."""
    request_gain_L: FloatArray
    """Relative gain of the best finer over the best explored action, request by request."""
    static_gain_L: FloatArray
    """The same for one vector for everybody."""


def measure_finer(surface: Surface, factor: int, *, seed: int, requests: int, draws: int) -> FinerError:
    """Compare over the first requests after a world's log."""
    grid = finer_grid(surface, factor)
    q_nTM = _truth(surface, grid, seed=seed, requests=requests, draws=draws)
    explored_T = grid.action_T >= 0
    q_nAM = np.empty((len(q_nTM), surface.num_actions, q_nTM.shape[2]))
    q_nAM[:, grid.action_T[explored_T]] = q_nTM[:, explored_T]
    value_TM = q_nTM.mean(axis=0)
    error_TM = (grid.mixture_TA @ q_nAM.mean(axis=0) - value_TM) / value_TM.mean(axis=0)
    second_W = np.array([weight.minimum + weight.step for weight in surface.controlled])
    upper_T = (grid.weights_TW >= second_W - 1e-9).all(axis=1)
    return FinerError(
        rms_M=_rms(error_TM[~explored_T]),
        largest_M=np.abs(error_TM[~explored_T]).max(axis=0),
        upper_rms_M=_rms(error_TM[~explored_T & upper_T]),
        request_gain_L=_gains(q_nTM, q_nAM),
        static_gain_L=_gains(value_TM[None], q_nAM.mean(axis=0)[None]),
    )


def _truth(surface: Surface, grid: FinerGrid, *, seed: int, requests: int, draws: int) -> FloatArray:
    """Q of every finer weight vector, over the intent and over redrawn candidates, [n, T, M]."""
    world = World(WorldConfig(seed=seed, requests=1000, days=21), surface)
    parts = []
    for start in range(0, requests, CHUNK):
        batch = world.requests(1000 + start, min(CHUNK, requests - start))
        posterior_nS = world.intent_posterior(batch)
        total: npt.NDArray[np.float64] | float = 0.0
        for draw in range(draws):
            again = world.redraw(batch, draw + 1)
            reward_nTSR = world.rewards_by_intent(again, weights=grid.weights_TW)
            total = total + np.einsum("ntsr,ns->ntr", reward_nTSR, posterior_nS)
        parts.append(np.asarray(total)[..., : len(surface.objectives)] / draws)
    return np.concatenate(parts)


def _rms(error_XM: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt((error_XM**2).mean(axis=0)))


def _gains(finer_nTM: FloatArray, explored_nAM: FloatArray) -> FloatArray:
    best = [
        [(q @ np.array([1.0 - alpha, alpha])).max(axis=1).mean() for q in (finer_nTM, explored_nAM)]
        for alpha in ALPHAS
    ]
    return np.array([finer / explored - 1.0 for finer, explored in best])
