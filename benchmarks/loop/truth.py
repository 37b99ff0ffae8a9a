"""The feed's own expectation of what was served in an A/B test, without the noise of single engagements.

For each request of the treatment arm the feed says in closed form what the served weights are worth, and
what the production weights would have been worth on the *same* request: a paired lift, whose interval holds
only which users came. It is the truth that the experiment estimates from events.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from ray_train.intervals import ClusterBootstrap, relative_lifts

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 1000


@dataclass
class Truth:
    """Adds up expected outcomes of the treatment arm, served and production, by user."""

    world: World
    sums: dict[str, FloatArray] = field(default_factory=dict)
    """User → [2 policies, R outcomes, (numerator, denominator)]; production first."""
    requests: int = 0

    def add(self, batch: RequestBatch, weights_nW: FloatArray, treated: npt.NDArray[np.bool_]) -> None:
        """Take in a batch: the weights that each request was served, and which were treated."""
        served = self.world.expected_rewards(batch, weights=weights_nW)
        usual = self.world.expected_rewards(batch, weights=self.world.surface.production)
        pair = np.stack([usual, served], axis=1)
        both = np.stack([pair, np.ones_like(pair)], axis=-1)
        for row in np.flatnonzero(treated):
            user = str(batch.user_id[row])
            self.sums[user] = self.sums[user] + both[row] if user in self.sums else both[row]
        self.requests += int(treated.sum())

    def lifts(self, *, seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """Lift over production of every outcome, and its 95 % interval over users."""
        sum_UPR2 = np.stack(list(self.sums.values()))
        bootstrap = ClusterBootstrap(resamples=RESAMPLES, seed=seed)
        bootstrap.add(sum_UPR2)
        lift, bounds = relative_lifts(sum_UPR2.sum(axis=0))[1], bootstrap.bounds()[1]
        return {
            name: (float(lift[r]), float(bounds[r, 0]), float(bounds[r, 1]))
            for r, name in enumerate(self.world.outcomes)
        }
