"""What ``python -m benchmarks paper`` is told, and what follows from it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ray_train.learners import LEARNERS
from ray_train.sweep_settings import SweepSettings

TRAIN_SHARE = 2 / 3
"""The paper trains on 14 days and evaluates on the 7 that follow."""
DAYS = 21.0
STEP_BALANCED = 2
"""The leaning points lie so many steps of α (0.04) beside the balanced one; the paper's 0.04 and 0.03."""

Group = Literal["all", "user", "history", "context"]
GROUPS: tuple[Group, ...] = ("all", "user", "history", "context")
Kind = Literal["feed", "points", "ablation"]
_DEPENDS: dict[Kind, tuple[str, ...]] = {
    "feed": ("requests", "test_requests", "candidates", "users"),
    "points": (
        "requests",
        "test_requests",
        "candidates",
        "users",
        "learner",
        "points",
        "alpha_min",
        "alpha_max",
    ),
    "ablation": ("requests", "candidates", "users", "learner", "ablation_requests", "truth_requests"),
}
"""Fields of the settings that a kind of part depends on."""
OPERATING_POINTS = ("repin-leaning", "balanced", "p2p-leaning")


class PaperSettings(BaseModel):
    """One run. What lies in the folder was made with the same settings, or the run is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Worlds, each with a log, a network and A/B tests of its own."""
    requests: Annotated[int, Field(ge=3000)] = 200_000
    """Logged requests of each world over 21 days: two thirds train, the rest is the hold-out."""
    test_requests: Annotated[int, Field(ge=1000)] = 200_000
    """Requests after the log, on which every operating point has its A/B test and its exact value."""
    ablation_requests: Annotated[int, Field(ge=1000)] = 100_000
    """Rows that each network of the feature-group ablation learns from."""
    ablation_seeds: Annotated[int, Field(ge=1)] = 3
    """The first so many of the seeds."""
    truth_requests: Annotated[int, Field(ge=50)] = 4000
    """Requests on which the ablation is valued, with every action's value over intent and candidates."""
    learner: str = "committee"
    alpha_min: Annotated[float, Field(ge=0, le=1)] = 0.04
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.52
    points: Annotated[int, Field(ge=8, le=200)] = 25
    candidates: Annotated[int, Field(ge=25, le=5000)] = 240
    users: Annotated[int, Field(ge=1000, le=2_000_000)] = 20_000
    """Who the requests come from, and who is shared out between the arms of an A/B test."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.learner not in LEARNERS:
            raise ValueError(f"learner must be one of {', '.join(LEARNERS)}, got {self.learner!r}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is named twice")
        return self

    @property
    def train_rows(self) -> int:
        """Logged requests before the hold-out."""
        return round(self.requests * TRAIN_SHARE)

    @property
    def sweep(self) -> SweepSettings:
        """How the hold-out is valued: the product's default estimator and intervals, by cohort as well."""
        return SweepSettings(
            by_cohort=True, points=self.points, alpha_min=self.alpha_min, alpha_max=self.alpha_max
        )

    def identity(self, kind: Kind) -> dict[str, object]:
        """What a part of this kind depends on, besides its seed."""
        return self.model_dump(mode="json", include=set(_DEPENDS[kind]))


def operating_points(lift_PM: npt.NDArray[np.float64]) -> dict[str, int]:
    """The three points to test, from estimated lifts in order of α [P, M].

    *balanced*: the largest minimum of the lifts, ``argmax_p min_m L_pm``. The leaning ones lie
    :data:`STEP_BALANCED` steps of α beside it; they are not chosen by their own estimates, which would
    flatter them.
    """
    last = len(lift_PM) - 1
    worst_P = np.nan_to_num(lift_PM.min(axis=1), nan=-np.inf)
    balanced = int(np.clip(worst_P.argmax(), STEP_BALANCED, last - STEP_BALANCED))
    spots = (balanced - STEP_BALANCED, balanced, balanced + STEP_BALANCED)
    return dict(zip(OPERATING_POINTS, spots, strict=True))
