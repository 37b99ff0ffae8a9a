"""The frontier of a run: what ``sweep`` writes for people and for the sidecar, one JSON file.

A point is one scalarization λ, for everybody (``cohort`` null) or for one cohort, with what the logs
say about the policy ``a*(s; λ)`` (arXiv 2605.16344, Section 6.3). Lifts are relative to production's
estimate from the same rows, ``V(π_λ) / V(production) - 1`` (Eq. 10): 0.013 is +1.3 %. Null is "the logs
cannot tell", for example when no logged action equals the policy's.

Version 2 adds bands that hold for all points at once, and warnings; version 1 is read as well and has none.

NumPy-free and torch-free on purpose: the serving side reads this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triton_models.errors import FrontierError, PutsError
from triton_models.files import write_json
from triton_models.surface import FiniteFloat, Surface, describe_validation_error

FRONTIER = "frontier.json"
"""Name of the file inside a run's folder."""

Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bounds = tuple[FiniteFloat, FiniteFloat]
"""Lower and upper end of an interval."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricEstimate(_Frozen):
    """A guardrail metric under a policy: its mean, and its lift against production."""

    value: FiniteFloat | None
    lift: FiniteFloat | None
    interval: Bounds | None
    simultaneous: Bounds | None = None


class Estimate(_Frozen):
    """What the logs say about one policy."""

    values: dict[str, FiniteFloat | None]
    """Estimated mean clipped reward per objective."""
    lifts: dict[str, FiniteFloat | None]
    """Relative lift against production per objective, paired on the same rows."""
    intervals: dict[str, Bounds | None]
    """Interval of each lift, at the estimator's confidence, for one look."""
    simultaneous: dict[str, Bounds | None] | None = None
    """Bands of the lifts that hold for all points of the cohort, objectives and metrics at once."""
    metrics: dict[str, MetricEstimate]
    """Guardrails, never optimised."""
    hits: Count
    """Rows whose logged action the policy could have taken."""
    effective_sample_size: Weight
    """(Σ w)² / Σ w² of the importance weights."""
    mean_weights: dict[str, FiniteFloat]
    """Mean of each controlled weight that the policy chooses, by head."""

    def lower_bounds_not_negative(self) -> bool:
        """Whether every objective's lift is ≥ 0 at the lower end of its band, or else its interval."""
        return all(bounds is not None and bounds[0] >= 0 for bounds in self.bands().values())

    def bands(self) -> dict[str, Bounds | None]:
        """What to judge by: the simultaneous bands; the intervals in files of version 1."""
        return self.intervals if self.simultaneous is None else self.simultaneous


class Point(Estimate):
    """One operating point of the sweep."""

    scalarization: tuple[Weight, ...]
    """λ on the simplex, in the surface's order of objectives."""
    cohort: str | None
    """Null: everybody."""
    dominated: bool
    """Another point of the same cohort is at least as good on every objective and better on one."""
    extrapolated: bool
    """The policy uses weights between those that were explored: no logged row has them, and no candidate."""


class Candidate(_Frozen):
    """An operating point worth a test: the index of its point, why, and its static counterpart.

    Usable as an index: ``frontier.points[frontier.candidates["knee"]]``.
    """

    point: Count
    reason: str = ""
    lower_bounds_not_negative: bool | None = None
    matched_static: Estimate | None = None
    """The same mean weights given to everybody (Section 6.4.5): what retuning alone would give."""

    @model_validator(mode="before")
    @classmethod
    def _bare_index(cls, data: Any) -> Any:
        return {"point": data} if isinstance(data, int) and not isinstance(data, bool) else data

    def __index__(self) -> int:
        return self.point


class RunReference(_Frozen):
    """Which run the frontier belongs to."""

    run_id: str
    surface_fingerprint: str
    code_version: str


class Window(_Frozen):
    """The rows that were evaluated: ISO 8601 instants, start inclusive, end exclusive."""

    start: str
    end: str
    split: Literal["holdout", "all"]
    rows: Count
    rows_rejected: Count = 0
    logs: str


class EstimatorReference(_Frozen):
    """How values and intervals were made."""

    name: str
    formula: str
    interval: str
    confidence: Annotated[float, Field(gt=0, lt=1)]
    resamples: Count
    seed: int
    critical: FiniteFloat | None = None
    """Half width of the simultaneous bands of everybody's points, in standard deviations."""
    looks: Count | None = None
    """Lifts that those bands hold for together."""
    details: str = ""
    """The model of the reward and the knobs, where the estimator has any."""


class Baseline(_Frozen):
    """Production's own estimate, for everybody or one cohort."""

    cohort: str | None
    rows: Count
    values: dict[str, FiniteFloat | None]
    metrics: dict[str, FiniteFloat | None]
    hits: Count
    effective_sample_size: Weight
    hypervolume: Weight | None
    """Volume of lifts between production and the frontier of this cohort (0: nothing beats it)."""


class Production(_Frozen):
    """The production policy, and how its value was read from logs that never contain it."""

    valuation: Literal["smooth", "mixture", "nearest"]
    note: str
    weights: dict[str, FiniteFloat]
    estimates: tuple[Baseline, ...]

    def estimate(self, cohort: str | None = None) -> Baseline | None:
        """Production's estimate for a cohort, or for everybody."""
        return next((estimate for estimate in self.estimates if estimate.cohort == cohort), None)


class Frontier(_Frozen):
    """A whole sweep. Immutable; see the module docstring for the meaning of a point."""

    version: Literal[1, 2] = 2
    surface: dict[str, Any]
    run: RunReference
    window: Window
    estimator: EstimatorReference
    production: Production
    points: Annotated[tuple[Point, ...], Field(min_length=1)]
    candidates: dict[str, Candidate]
    """Label → candidate: ``<objective>_leaning``, ``knee``, ``non_degrading`` (absent if none)."""
    warnings: tuple[str, ...] = ()
    """What makes the figures less trustworthy, one sentence each."""

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        surface = self.surface_object
        if surface.fingerprint != self.run.surface_fingerprint:
            raise ValueError("the surface does not have the recorded fingerprint; the file was edited")
        for index, point in enumerate(self.points):
            try:
                _check_point(surface, point)
            except (ValueError, PutsError) as error:
                raise ValueError(f"points[{index}]: {error}") from error
        for label, candidate in self.candidates.items():
            if candidate.point >= len(self.points):
                raise ValueError(f"candidate {label} names point {candidate.point} of {len(self.points)}")
            if self.points[candidate.point].extrapolated:
                raise ValueError(f"candidate {label} names point {candidate.point}, which is extrapolated")
        return self

    @cached_property
    def surface_object(self) -> Surface:
        """The control surface of the run, parsed."""
        return Surface.from_dict(self.surface, source="surface")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON: the identity that policies refer to."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def points_of(self, cohort: str | None = None, *, extrapolated: bool = False) -> tuple[Point, ...]:
        """The points of one cohort, or of everybody, in sweep order: explored ones, or extrapolated ones."""
        return tuple(p for p in self.points if (p.cohort, p.extrapolated) == (cohort, extrapolated))

    def candidate(self, label: str) -> Point:
        """The operating point behind a candidate's label.

        Raises:
            FrontierError: there is no such candidate; names those there are.
        """
        if label not in self.candidates:
            known = ", ".join(self.candidates) or "none"
            raise FrontierError(f"the frontier has no candidate {label!r}; it has {known}")
        return self.points[self.candidates[label].point]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data that :func:`load_frontier` reads back."""
        # A file of version 1 keeps its fingerprint: fields that it did not have are left out again.
        return self.model_dump(mode="json", exclude_unset=self.version == 1)


def _check_point(surface: Surface, point: Point) -> None:
    surface.scalarization(point.scalarization)
    if point.cohort is not None and surface.cohorts and point.cohort not in surface.cohorts:
        raise ValueError(f"cohort {point.cohort!r} is not one of the surface's cohorts")
    for name, mapping in (("values", point.values), ("lifts", point.lifts), ("intervals", point.intervals)):
        _check_keys(name, mapping, surface.objectives)
    if point.simultaneous is not None:
        _check_keys("simultaneous", point.simultaneous, surface.objectives)
    _check_keys("metrics", point.metrics, surface.metrics)
    _check_keys("mean_weights", point.mean_weights, surface.controlled_heads)


def _check_keys(field: str, mapping: Mapping[str, object], expected: Iterable[str]) -> None:
    names = tuple(expected)
    if set(mapping) != set(names):
        raise ValueError(f"{field} has keys {sorted(mapping)}, the surface says {sorted(names)}")


def write_frontier(path: str | Path, frontier: Frontier) -> None:
    """Write a frontier as strict JSON, atomically."""
    write_json(path, frontier.to_dict())


def load_frontier(path: str | Path) -> Frontier:
    """Read a frontier file, or the frontier of a run's folder.

    Raises:
        FrontierError: it is missing, damaged, empty, or contradicts itself; one line.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FRONTIER
    try:
        data = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise FrontierError(
            f"{file}: there is no frontier; make one with python -m ray_train sweep"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise FrontierError(f"{file}: cannot be read as JSON: {error}") from error
    return parse_frontier(data, source=str(file))


def parse_frontier(data: object, *, source: str) -> Frontier:
    """A frontier out of plain data.

    Raises:
        FrontierError: it is damaged, empty, or contradicts itself; one line that names ``source``.
    """
    try:
        return Frontier.model_validate(data)
    except ValidationError as error:
        raise FrontierError(f"{source}: not a frontier: {describe_validation_error(error)}") from error
    except PutsError as error:
        raise FrontierError(f"{source}: not a frontier: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
