"""What the choices in a simulated world are really worth.

* *Static* policies use one weight vector for everybody.
* The *best request-level policy* sees what the request shows and nothing else. Its value of an action is
  ``Q(s, a) = E[r | s, a]`` over the session's intent (exact posterior, Bayes) and over the candidates
  (D fresh draws). Choosing with one half of the draws and valuing with the other, both ways round, keeps
  the maximum of noise out of the value.

Everything else is exact given the draws; the error that is left is which requests were looked at.

Shape legend: n requests, A actions, R outcomes (objectives, then metrics), M objectives, L scalarizations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from triton_models.errors import SimulationError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CHUNK_REQUESTS = 256


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Values of everything that can be chosen, over n requests of a world."""

    outcomes: tuple[str, ...]
    objectives: int
    """The first M outcomes are objectives."""
    cohort: npt.NDArray[np.object_]
    """Cohort of every request, [n]."""
    production_nR: FloatArray
    """Production weights, per request."""
    half_2nAR: FloatArray
    """Q(s, a) from either half of the candidate draws."""

    @property
    def action_values_nAR(self) -> FloatArray:
        """Q(s, a) from all draws."""
        return np.asarray(self.half_2nAR.mean(axis=0))

    @property
    def production(self) -> FloatArray:
        """Value of production, [R]."""
        return np.asarray(self.production_nR.mean(axis=0))

    @property
    def static(self) -> FloatArray:
        """Value of every action as a static vector, [A, R]."""
        return np.asarray(self.half_2nAR.mean(axis=(0, 1)))

    def policy(self, actions: npt.ArrayLike) -> FloatArray:
        """Value of any policy, given as the actions it picks for these requests [n]; [R]."""
        chosen = np.asarray(actions)
        return np.asarray(self.action_values_nAR[np.arange(len(chosen)), chosen].mean(axis=0))

    def best_static(self, scalarization: npt.ArrayLike) -> int:
        """The best static action under λ [M]."""
        return int(np.argmax(self.static[:, : self.objectives] @ np.asarray(scalarization)))

    def best_actions(self, scalarization: npt.ArrayLike) -> IntArray:
        """``argmax_a Σ_m λ_m Q_m(s, a)`` from all draws, [n]."""
        scores = self.action_values_nAR[:, :, : self.objectives] @ np.asarray(scalarization)
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)

    def best_per_request(self, scalarization: npt.ArrayLike) -> FloatArray:
        """What the best request-level policy earns at each request, cross-fitted, [n, R]."""
        lam, rows = np.asarray(scalarization), np.arange(len(self.production_nR))
        earned = [
            other[rows, (half[:, :, : self.objectives] @ lam).argmax(axis=1)]
            for half, other in (self.half_2nAR, self.half_2nAR[::-1])
        ]
        return np.asarray(np.mean(earned, axis=0))

    def best(self, scalarization: npt.ArrayLike) -> FloatArray:
        """Value of the best request-level policy, [R]."""
        return np.asarray(self.best_per_request(scalarization).mean(axis=0))

    def gain(self, scalarization: npt.ArrayLike) -> float:
        """(best request-level − best static) / production, in scalarized reward."""
        lam, m = np.asarray(scalarization), self.objectives
        best = float(self.best(lam)[:m] @ lam)
        static = float(self.static[self.best_static(lam), :m] @ lam)
        return (best - static) / float(self.production[:m] @ lam)

    def select(self, rows: npt.NDArray[np.bool_]) -> Truth:
        """The same over some of the requests, for instance ``truth.cohort == "core"``."""
        return Truth(
            outcomes=self.outcomes,
            objectives=self.objectives,
            cohort=self.cohort[rows],
            production_nR=self.production_nR[rows],
            half_2nAR=self.half_2nAR[:, rows],
        )


def find_truth(
    world: World,
    first: int,
    count: int,
    *,
    draws: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Truth:
    """Value every action at ``count`` requests from number ``first`` on.

    Args:
        world: the world.
        first: number of the first request; ``world.config.requests`` is the first one after the log.
        count: requests, ≥ 1.
        draws: candidate redraws per request, an even number ≥ 2.
        progress: called with the number of requests done.

    Raises:
        SimulationError: impossible numbers.
    """
    if count < 1 or draws < 2 or draws % 2:
        raise SimulationError(f"truth needs count ≥ 1 and an even draws ≥ 2, got {count} and {draws}")
    halves, production = [], []
    for start in range(first, first + count, CHUNK_REQUESTS):
        batch = world.requests(start, min(CHUNK_REQUESTS, first + count - start))
        half, served = _value(world, batch, draws)
        halves.append(half)
        production.append(served)
        if progress is not None:
            progress(len(batch))
    return Truth(
        outcomes=world.outcomes,
        objectives=len(world.surface.objectives),
        cohort=world.requests(first, count).cohort,
        production_nR=np.concatenate(production),
        half_2nAR=np.concatenate(halves, axis=1),
    )


def _value(world: World, batch: RequestBatch, draws: int) -> tuple[FloatArray, FloatArray]:
    posterior = world.intent_posterior(batch)
    shape = (2, len(batch), world.surface.num_actions, len(world.outcomes))
    half, served = np.zeros(shape), np.zeros((len(batch), len(world.outcomes)))
    for draw in range(draws):
        again = world.redraw(batch, draw + 1)
        half[draw % 2] += np.einsum("nasr,ns->nar", world.rewards_by_intent(again), posterior)
        production = world.rewards_by_intent(again, weights=world.surface.production)
        served += np.einsum("nsr,ns->nr", production[:, 0], posterior)
    return half / (draws // 2), served / draws
