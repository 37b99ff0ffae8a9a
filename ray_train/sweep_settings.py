"""How to sweep and to value: everything but the rows and the run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ray_train.estimators import FloatArray
from ray_train.estimators_by_name import ESTIMATORS, MODELLED
from ray_train.estimators_smooth import KernelDR, ProjectionDR
from ray_train.intervals import ClusterBootstrap, DeltaMethod, IntervalMethod
from ray_train.pareto import lattice
from ray_train.production import Valuation
from triton_models.errors import ConfigurationError
from triton_models.surface import Surface

SMOOTH = (ProjectionDR.name, KernelDR.name)
"""Estimators that can say something of weights between the explored ones."""


class SweepSettings(BaseModel):
    """Settings of one sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimator: str = ProjectionDR.name
    """One of :data:`ray_train.estimators_by_name.ESTIMATORS`; the default was chosen by measurement
    (benchmarks/RESULTS.md, L3)."""
    reward_model: Literal["ridge", "network"] = "ridge"
    """For the estimators that have one: cross-fitted on these rows, or the run's network as it is."""
    by_cohort: bool = False
    """Also every point for every cohort."""
    points: Annotated[int, Field(ge=2, le=1000)] = 25
    """Values of α for two objectives; about the size of the simplex lattice for more."""
    alpha_min: Annotated[float, Field(ge=0, le=1)] = 0.0
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 1.0
    resamples: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Bootstrap resamples; 0 uses the normal (delta-method) interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0
    production: Valuation = "smooth"
    finer: Annotated[int, Field(ge=1, le=16)] = 1
    """Also value choices between the explored weights, every grid step divided by this (ray_train.finer)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}")
        if self.finer > 1 and self.estimator not in SMOOTH:
            raise ValueError(
                f"finer weights than explored are in no logged row, so {self.estimator} cannot value them; "
                f"{' and '.join(SMOOTH)} let neighbouring grid points count"
            )
        if self.alpha_min >= self.alpha_max:
            raise ValueError(f"alpha-min must be below alpha-max, got {self.alpha_min} and {self.alpha_max}")
        return self

    @property
    def needs_features(self) -> bool:
        """Whether the rows have to carry what a model of the reward may know."""
        return self.estimator in MODELLED

    def scalarizations(self, surface: Surface) -> FloatArray:
        """λ of every point, [P, M].

        Raises:
            ConfigurationError: an α range for other than two objectives.
        """
        objectives = len(surface.objectives)
        if objectives != 2 and (self.alpha_min, self.alpha_max) != (0.0, 1.0):
            raise ConfigurationError(
                f"alpha-min and alpha-max need two objectives, the surface has {objectives}"
            )
        return lattice(objectives, self.points, low=self.alpha_min, high=self.alpha_max)

    def interval_method(self) -> IntervalMethod:
        """A fresh accumulator; equal seeds give equal resamples, so that evaluations stay paired."""
        if self.resamples == 0:
            return DeltaMethod(confidence=self.confidence)
        return ClusterBootstrap(resamples=max(2, self.resamples), seed=self.seed, confidence=self.confidence)
