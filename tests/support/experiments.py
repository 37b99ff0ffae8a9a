"""An A/B test with a known answer, as decisions and events.

Users have a level ``ℓ_u``, uniform in 0.5 ∓ 0.3, and 1 to 9 requests each, so that requests of a user
resemble each other. Outcome r happens in arm p with probability ``ℓ_u (1 + lift_pr)``: the true lift is
``lift_pr``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tests.support.logs import START
from triton_models.decision_format import event_schema
from triton_models.surface import Surface


@dataclass(frozen=True, kw_only=True)
class TrueArm:
    """One arm."""

    name: str
    lifts: Sequence[float]
    """By outcome: objectives, then metrics."""
    scalarization: tuple[float, ...] | None = None
    """None: static."""
    share: float = 1.0
    fallback: float = 0.0


def make_experiment(
    surface: Surface,
    arms: Sequence[TrueArm],
    *,
    users: int = 1000,
    seed: int = 0,
    days: float = 7.0,
    sampled: float = 1.0,
    explored: float = 0.0,
    versions: int = 1,
    frontier: str | None = None,
    cohort_lifts: Mapping[str, float] | None = None,
    control_off: float = 0.0,
    ramp: Sequence[float] = (),
    rise: float = 0.0,
) -> tuple[pa.Table, pa.Table]:
    """Decisions and events.

    Args:
        surface: objectives, metrics, cohorts.
        arms: users are dealt to them by their shares.
        users: how many.
        seed: of everything.
        days: length of the test.
        sampled: share of the requests that are logged (explored ones always are).
        explored: share of the requests that explore.
        versions: the test's days are divided evenly among so many policy versions.
        frontier: fingerprint of the frontier that the policies came from.
        cohort_lifts: factor of an arm's lifts by cohort; 1 where it is not named.
        control_off: share of the requests that come with the control switched off: no lift in any arm.
        ramp: share of the second arm's users, one after the other, in equal parts of the days; the first arm
            has the others.
        rise: how much likelier all outcomes are in the second half of the days, whatever the arm.
    """
    rng = np.random.default_rng(seed)
    share = np.array([arm.share for arm in arms])
    arm_u = rng.choice(len(arms), size=users, p=share / share.sum())
    level_u = 0.5 + rng.uniform(-0.3, 0.3, size=users)
    user = np.repeat(np.arange(users), rng.integers(1, 10, size=users))
    size = len(user)
    arm = arm_u[user]
    seconds = rng.uniform(0, days * 86_400, size=size)
    if ramp:
        place_u = np.random.default_rng([seed, 2]).random(users)
        step = (seconds * len(ramp) // (days * 86_400)).astype(np.int64)
        arm = (place_u[user] < np.array(ramp)[step]).astype(np.int64)
    explores = rng.random(size) < explored
    logged = explores | (rng.random(size) < sampled)
    cohorts = surface.cohorts or ("all",)
    cohort = user % len(cohorts)
    factor = np.array([(cohort_lifts or {}).get(name, 1.0) for name in cohorts])[cohort]
    lift = np.array([arm.lifts for arm in arms])[arm] * factor[:, None]
    # A generator of its own: the other draws stay what they were.
    off = ~explores & (np.random.default_rng([seed, 1]).random(size) < control_off)
    lift[off] = 0.0
    risen = 1.0 + rise * (seconds >= days * 43_200)
    happened = rng.random((size, lift.shape[1])) < (level_u[user] * risen)[:, None] * (1 + lift)
    fell_back = rng.random(size) < np.array([arm.fallback for arm in arms])[arm]
    names = np.array([arm.name for arm in arms])
    static = np.array([arm.scalarization is None for arm in arms])[arm]
    source = np.where(explores, "exploration", np.where(static, "static", "value_network"))
    scalarizations = [arm.scalarization for arm in arms]
    decisions = pa.table(
        {
            "request_id": [f"q{i}" for i in range(size)],
            "timestamp": instants(seconds),
            "user_id": [f"u{u}" for u in user],
            "cohort": [cohorts[c] for c in cohort],
            "route": ["rank"] * size,
            **{f"weight_{head}": np.full(size, 1.0) for head in surface.controlled_heads},
            "arm": names[arm],
            "policy_version": pa.array((seconds // (days * 86_400 / versions)).astype(np.int64) + 1),
            "source": np.where(off | (fell_back & ~explores & ~static), "production", source),
            "reason": pa.array(
                np.where(off, "control_off", np.where(fell_back & ~static, "late", None)), pa.string()
            ),
            "explored": explores,
            "scalarization": pa.array([scalarizations[a] for a in arm], pa.list_(pa.float64())),
            "log_probability": np.where(explores, 1.0, sampled),
            "surface_fingerprint": [surface.fingerprint] * size,
            "frontier_fingerprint": pa.array([frontier] * size, pa.string()),
        }
    ).filter(pa.array(logged))
    return decisions, _events(surface, seconds, happened)


def instants(seconds: npt.NDArray[Any]) -> pa.Array:
    """Seconds after :data:`START` → timestamps."""
    start = np.datetime64(START.replace(tzinfo=None), "us")
    return pa.array(start + (seconds * 1e6).astype("timedelta64[us]")).cast(pa.timestamp("us", tz="UTC"))


def _events(surface: Surface, seconds: npt.NDArray[Any], happened: npt.NDArray[np.bool_]) -> pa.Table:
    request, outcome = np.nonzero(happened)
    names = np.array([*surface.objectives, *surface.metrics])
    lag = timedelta(minutes=5).total_seconds()
    return pa.table(
        {
            "request_id": [f"q{i}" for i in request],
            "timestamp": instants(seconds[request] + lag),
            "event": names[outcome],
            "value": pa.nulls(len(request), pa.float64()),
            "event_id": pa.nulls(len(request), pa.string()),
        }
    ).cast(event_schema())
