"""``experiment.json``: what an A/B test of operating points showed, typed and versioned.

Lifts are relative to the control arm in the same part of the traffic, ``V_arm / V_control - 1``: 0.013 is
+1.3 %. Null is "the data cannot tell". Part of the traffic: a policy version (null: all of them) and a
cohort (null: everybody). Where the arms' shares changed, by a ramp or a new version, a lift compares within
the times between the changes, and is not the quotient of the values, which are of the whole time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triton_models.errors import LogError
from triton_models.files import write_json
from triton_models.frontier import Bounds
from triton_models.surface import FiniteFloat, Surface, describe_validation_error

EXPERIMENT = "experiment.json"
"""Name of the file in the experiment's folder."""

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Effect(_Frozen):
    """One outcome in one cell."""

    value: FiniteFloat | None
    lift: FiniteFloat | None
    interval: Bounds | None


class Cell(_Frozen):
    """One arm in one part of the traffic."""

    arm: str
    policy_version: int | None
    cohort: str | None
    users: Count
    requests: Count
    """Logged ones, explorations left out."""
    weighted_requests: Annotated[float, Field(ge=0)]
    """Requests that the logged ones stand for, Σ 1 / log_probability."""
    fallback_share: Share | None
    """Requests that got production weights instead of the arm's choice; they stay in their arm."""
    control_off_share: Share | None = None
    """Of the arm's requests, those that came with the control switched off, by the operator or by themselves:
    no fault, and in no other number here. Null in a file of before they were told apart."""
    effects: dict[str, Effect]
    """By objective and metric."""


class ShareTime(_Frozen):
    """A time in which the arms' shares of the traffic did not change."""

    policy_version: int
    start: str
    """It ends with the next one of the version, or with the version."""
    requests: Count
    """Logged ones, of all arms."""
    shares: dict[str, Share]
    """Of these requests; a sample of the log may be another share of each arm's."""


class SampleRatio(_Frozen):
    """Are there as many users in each arm as its share says? Pearson's chi-square test."""

    policy_version: int
    users: dict[str, Count]
    shares: dict[str, Share]
    """Declared ones; equal ones where none were declared."""
    declared: bool
    chi_square: Annotated[float, Field(ge=0)]
    p_value: Share
    verdict: Literal["as_declared", "mismatch", "not_declared"]


class GuardrailVerdict(_Frozen):
    """One arm against the limit of one outcome."""

    outcome: str
    arm: str
    minimum_lift: FiniteFloat | None
    maximum_lift: FiniteFloat | None
    lift: FiniteFloat | None
    interval: Bounds | None
    verdict: Literal["holds", "breached", "undecided"]
    """``holds``: the whole interval is within the limit; ``breached``: the whole interval is beyond it."""


class Prediction(_Frozen):
    """What the frontier said about an operating point, beside what was measured."""

    arm: str
    policy_version: int | None
    cohort: str | None
    scalarization: tuple[Annotated[float, Field(ge=0)], ...]
    point: Count
    """Index of the frontier's point."""
    predicted: dict[str, FiniteFloat | None]
    predicted_intervals: dict[str, Bounds | None]
    measured: dict[str, FiniteFloat | None]
    measured_intervals: dict[str, Bounds | None]


class Correlation(_Frozen):
    """Pearson's correlation of predicted and measured lifts over operating points."""

    outcome: str
    among: Literal["everybody", "cohorts"]
    """Over arms, or over arms in cohorts."""
    points: Count
    pearson: FiniteFloat | None
    """Null with fewer than three points, or without any spread."""
    interval: Bounds | None
    """By Fisher's z; null with fewer than four points."""


class FrontierReference(_Frozen):
    """Whose predictions they are."""

    run_id: str
    fingerprint: str
    matches_decisions: bool
    """Whether the decisions' policies came from this frontier, and no other."""


class Experiment(_Frozen):
    """A whole analysis. Immutable."""

    version: Literal[1] = 1
    surface: dict[str, Any]
    decisions: str
    """The decision log."""
    events: str
    attribution: dict[str, Any]
    first_decision: str
    last_decision: str
    latest_version: Count
    """Policy version of the last decision: the one in force, if the log is recent."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    interval: str
    """How intervals are made."""
    control: str
    arms: tuple[str, ...]
    """The control first."""
    cells: tuple[Cell, ...]
    share_times: tuple[ShareTime, ...] = ()
    """In order; empty in a file of before lifts were compared within them."""
    mixed_versions: tuple[int, ...] = ()
    """Versions whose shares changed more often than can be told apart: times have got into their lifts."""
    sample_ratios: tuple[SampleRatio, ...]
    guardrails: tuple[GuardrailVerdict, ...]
    frontier: FrontierReference | None
    predictions: tuple[Prediction, ...]
    correlations: tuple[Correlation, ...]
    decision_counts: dict[str, Count]
    event_counts: dict[str, Count]

    @property
    def surface_object(self) -> Surface:
        """The control surface, parsed."""
        return Surface.from_dict(self.surface, source="surface")

    @property
    def treatments(self) -> tuple[str, ...]:
        """The arms beside the control."""
        return self.arms[1:]

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Objectives, then metrics."""
        surface = self.surface_object
        return (*surface.objectives, *surface.metrics)

    @property
    def cohorts(self) -> tuple[str, ...]:
        """Cohorts that were seen, in order."""
        return tuple(dict.fromkeys(cell.cohort for cell in self.cells if cell.cohort is not None))

    @property
    def versions(self) -> tuple[int, ...]:
        """Policy versions that have cells of their own: all of them if there are several."""
        return tuple(
            dict.fromkeys(cell.policy_version for cell in self.cells if cell.policy_version is not None)
        )

    @property
    def ramped_versions(self) -> tuple[int, ...]:
        """Versions in which the arms' shares changed."""
        versions = [time.policy_version for time in self.share_times]
        return tuple(version for version in dict.fromkeys(versions) if versions.count(version) > 1)

    def cell(self, arm: str, version: int | None = None, cohort: str | None = None) -> Cell | None:
        """One arm in one part of the traffic, if it was there."""
        wanted = (arm, version, cohort)
        return next((c for c in self.cells if (c.arm, c.policy_version, c.cohort) == wanted), None)


def write_experiment(path: str | Path, experiment: Experiment) -> None:
    """Write it as strict JSON, atomically."""
    write_json(path, experiment.model_dump(mode="json"))


def load_experiment(path: str | Path) -> Experiment:
    """Read the file, or the one in a folder.

    Raises:
        LogError: it is missing, damaged, or of another version; one line.
    """
    file = Path(path)
    if file.is_dir():
        file = file / EXPERIMENT
    try:
        return Experiment.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise LogError(f"{file}: not an experiment: {describe_validation_error(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise LogError(f"{file}: cannot be read as JSON: {error}") from error
