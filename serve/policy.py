"""Operating policies: who is to get which choice of weights. Typed and checked; no clock, no store, no HTTP.

A policy splits the users into arms. An arm serves either the production weights (``static``) or the value
network's choice under one scalarization λ, cohort by cohort if it says so. Beside the arms a small share of
the requests explores: it draws an action from a declared distribution (arXiv 2605.16344, Section 6.1), and
that draw with its propensity is what the next network learns from. :mod:`serve.assignment` says who is in
which arm.

Shape legend: A actions, M objectives.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triton_models.errors import PolicyError, ScalarizationError
from triton_models.surface import FiniteFloat, Surface, describe_validation_error

MAX_ARMS = 16
"""Arms are a label of the metrics."""

MAX_EXCLUDED = 100_000

SHARE_TOLERANCE = 1e-9
"""By how much shares and probabilities may miss one."""

STATIC: Literal["static"] = "static"

ArmName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
"""PostgreSQL's text has no NUL."""
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A version or a sequence, as wide as the databases' integers."""
Id = Annotated[str, Field(min_length=1, max_length=256)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Entry = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scalarization = Annotated[tuple[Entry, ...], Field(min_length=1)]
Choice = Literal["static"] | Scalarization
"""Production weights, or λ in the surface's order of objectives."""

Kind = Literal["scalarization", "static", "exploration"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Frozen):
    """A share of the users and what they get."""

    name: ArmName
    share: Share = 1.0
    """Share of the users. For the ramped arm: ignored, its ramp says it. The other arms' shares are taken
    relative to each other, so 1 for a single one will do."""
    choice: Choice
    cohorts: dict[Id, Choice] = Field(default_factory=dict)
    """What a cohort gets instead of ``choice``."""

    def choice_of(self, cohort: str | None) -> Choice:
        """The choice for a cohort, which may be unknown."""
        return self.choice if cohort is None else self.cohorts.get(cohort, self.choice)


class RampStep(_Frozen):
    """One step of a ramp."""

    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    hold_s: Annotated[float, Field(gt=0, le=366 * 86_400, allow_inf_nan=False)] | None = None
    """How long until the next step; the last step has none and stays."""


class Ramp(_Frozen):
    """How one arm's share grows with the time since activation."""

    arm: ArmName
    steps: Annotated[tuple[RampStep, ...], Field(min_length=1, max_length=32)]

    @model_validator(mode="after")
    def _growing(self) -> Self:
        shares = [step.share for step in self.steps]
        if any(later < earlier for earlier, later in pairwise(shares)):
            raise ValueError(f"a ramp only grows, got shares {shares}")
        if any(step.hold_s is None for step in self.steps[:-1]):
            raise ValueError("every step but the last needs hold_s, the seconds until the next one")
        if self.steps[-1].hold_s is not None:
            raise ValueError("the last step has no hold_s: it stays until the policy changes")
        return self

    def position(self, elapsed_s: float) -> int:
        """Index of the step that is in force after ``elapsed_s``, a pure function of it."""
        end_s = 0.0
        for index, step in enumerate(self.steps):
            end_s += step.hold_s if step.hold_s is not None else math.inf
            if elapsed_s < end_s:
                return index
        return len(self.steps) - 1

    def share(self, elapsed_s: float) -> float:
        """Share of the users in the ramped arm after ``elapsed_s``."""
        return self.steps[self.position(elapsed_s)].share


class Exploration(_Frozen):
    """Which requests draw an action instead of being served their arm's choice."""

    share: Share = 0.0
    """Share of the requests that would explore, by hash of the request id."""
    cap: Share = 0.0125
    """Hard cap: of any ``n`` requests in a row, whichever replicas they went to, at most ``burst + cap n``
    explore."""
    burst: Annotated[int, Field(ge=1, le=10_000)] = 10
    """How many may explore at once after a while without. The replicas share it evenly and each has one at
    least, so with more replicas than ``burst`` their number stands in its place. While a rolling upgrade runs
    old and new replicas side by side, each set has a burst of its own: up to twice as many, once. The less of
    it a replica has, the more of a ``share`` close to ``cap`` is lost: where few explore that should, raise
    it."""
    distribution: Literal["uniform"] | tuple[Share, ...] = "uniform"
    """Over the A actions of the grid, in the surface's order; sums to one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.share > self.cap:
            raise ValueError(f"exploration share {self.share} is above its cap {self.cap}")
        if self.distribution != "uniform":
            total = math.fsum(self.distribution)
            if abs(total - 1.0) > SHARE_TOLERANCE:
                raise ValueError(f"the exploration distribution sums to {total}, not to 1")
        return self


class Excluded(_Frozen):
    """Who never explores."""

    users: Annotated[frozenset[Id], Field(max_length=MAX_EXCLUDED)] = frozenset()
    placements: Annotated[frozenset[Id], Field(max_length=MAX_EXCLUDED)] = frozenset()
    """Values of the request's field ``placement``."""


class MetricLimit(_Frozen):
    """How much a guardrail metric may change. Crossed when the whole interval lies beyond the limit."""

    minimum_lift: FiniteFloat | None = None
    maximum_lift: FiniteFloat | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.minimum_lift is None and self.maximum_lift is None:
            raise ValueError("a metric's limit needs minimum_lift or maximum_lift")
        return self


class Guardrails(_Frozen):
    """Limits for the ramped arm's own traffic; crossing one during a ramp ends the policy."""

    window_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 60.0
    """The traffic of this long is looked at, that of all replicas that share the policy store."""
    minimum_sample: Annotated[int, Field(ge=1)] = 200
    """Requests of the ramped arm, in all replicas together, below which nothing is said."""
    max_fallback_share: Share | None = 0.2
    """Fallbacks that are the value network's doing (late, down, rubbish), not the caller's."""
    max_error_share: Share | None = 0.05
    """Requests that got no ranking."""
    max_added_p99_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """99th percentile of the wait for the value network after the ranker had answered; ``/v1/weights``, where
    nothing is waited for beside it, counts as no wait."""
    metrics: dict[Id, MetricLimit] = Field(default_factory=dict)
    """Limits of metrics that operators or ``ray_train experiment`` report."""


class PolicyBody(_Frozen):
    """What an operator decides."""

    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=MAX_ARMS)]
    salt: Id = "puts"
    """Another salt deals the users anew; the same one keeps them where they are."""
    ramp: Ramp | None = None
    exploration: Exploration = Exploration()
    excluded: Excluded = Excluded()
    guardrails: Guardrails = Guardrails()

    @model_validator(mode="after")
    def _arms_and_ramp(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arms must have different names, got {', '.join(names)}")
        if self.ramp is not None and self.ramp.arm not in names:
            raise ValueError(f"the ramp is for arm {self.ramp.arm!r}, the arms are {', '.join(names)}")
        others = [arm.share for arm in self.others]
        if self.ramp is not None:
            if not others and self.ramp.steps[0].share < 1:
                raise ValueError("a ramp needs another arm, for the users who are not in yet")
            if others and sum(others) <= 0:
                raise ValueError("the arms beside the ramped one have no share at all")
        elif abs(math.fsum(others) - 1.0) > SHARE_TOLERANCE:
            raise ValueError(f"the arms' shares sum to {math.fsum(others)}, not to 1")
        return self

    @property
    def others(self) -> tuple[Arm, ...]:
        """The arms that are not ramped."""
        ramped = self.ramp.arm if self.ramp is not None else None
        return tuple(arm for arm in self.arms if arm.name != ramped)

    def shares(self, elapsed_s: float) -> dict[str, float]:
        """Each arm's share of the users after ``elapsed_s``; they sum to one."""
        ramped = self.ramp.share(elapsed_s) if self.ramp is not None else 0.0
        total = math.fsum(arm.share for arm in self.others)
        shares = {arm.name: (1.0 - ramped) * arm.share / total for arm in self.others}
        if self.ramp is not None:
            shares[self.ramp.arm] = ramped if shares else 1.0
        return {arm.name: shares[arm.name] for arm in self.arms}

    def check_surface(self, surface: Surface) -> None:
        """Refuse a policy that does not fit a surface.

        Raises:
            PolicyError: a scalarization, cohort, metric or distribution that the surface does not have.
        """
        for arm in self.arms:
            for cohort, choice in [(None, arm.choice), *arm.cohorts.items()]:
                where = f"arm {arm.name}" + (f", cohort {cohort}" if cohort else "")
                if cohort is not None and surface.cohorts and cohort not in surface.cohorts:
                    known = ", ".join(surface.cohorts)
                    raise PolicyError(f"{where}: the surface's cohorts are {known}")
                if choice != STATIC:
                    try:
                        surface.scalarization(choice, source=where)
                    except ScalarizationError as error:
                        raise PolicyError(str(error)) from error
        given = self.exploration.distribution
        if given != "uniform" and len(given) != surface.num_actions:
            raise PolicyError(
                f"exploration.distribution: expected {surface.num_actions} probabilities, got {len(given)}"
            )
        unknown = sorted(set(self.guardrails.metrics) - {*surface.metrics, *surface.objectives})
        if unknown:
            known = ", ".join([*surface.metrics, *surface.objectives])
            raise PolicyError(f"guardrails.metrics: {unknown[0]!r} is none of {known}")


class Policy(PolicyBody):
    """A numbered policy; it never changes."""

    version: Number
    author: Text
    reason: Text
    created_at: FiniteFloat
    """Unix time in seconds."""
    surface_fingerprint: str
    frontier_fingerprint: str | None = None
    """The reviewed frontier that its scalarizations come from."""
    forced: bool = False
    """Whether it was applied although it is not on that frontier."""


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One line of the activation log: from then on this version was in force."""

    sequence: int
    version: int
    at: float
    """Unix time in seconds."""
    author: str
    reason: str
    ramp_offset_s: float = 0.0
    """How far the policy's ramp had come already, when it was in force before."""


_Body = TypeVar("_Body", bound=BaseModel)


def parse(model: type[_Body], data: object, *, source: str) -> _Body:
    """Plain data as a typed object.

    Raises:
        PolicyError: naming ``source``, the field and what is wrong.
    """
    if not isinstance(data, dict):
        raise PolicyError(f"{source}: expected an object, got {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        text = re.sub(r"\s+", " ", describe_validation_error(error))
        raise PolicyError(f"{source}: {text}") from error
