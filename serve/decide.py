"""Which weights, from where, and why: pure functions without Ray, Triton or a clock of their own.

The value network's choice is ``a* = argmax_a Σ_m λ_m Q_m(s, a)`` (arXiv 2605.16344, Section 4.2), made
inside the served model. What is decided here is whether to ask at all (:func:`refusal`), how much longer
to wait (:func:`remaining_wait_s`), and whether to believe the answer (:func:`check_answer`). Every doubt
ends in the production weights with a reason, never in an error.

Shape legend: W controlled weights, M objectives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from triton_models.errors import ConfigurationError, ScalarizationError
from triton_models.surface import FloatArray, Surface

Reason = Literal[
    "late",
    "unavailable",
    "breaker_open",
    "overloaded",
    "invalid_answer",
    "state_incomplete",
    "state_invalid",
    "surface_mismatch",
    "control_off",
]
"""Why production weights were served. unavailable: a call failed, or no server was ever found;
breaker_open: not asked, since calls failed or were late and no probe has shown that this is over."""

REASONS: tuple[Reason, ...] = get_args(Reason)

Source = Literal["value_network", "production", "static", "exploration"]
"""Whose weights: the value network's choice; production as a fallback, with a reason; production because
the policy says so; a drawn action of the grid."""

Link = Literal["verified", "open", "unreachable", "mismatch"]
"""What is known of a value-network server: its surface was read and fits; the same, but its circuit breaker
is not closed (serve.breaker); nobody answers; its surface differs."""

WEIGHT_TOLERANCE = 1e-4
"""Relative difference between the answer's float32 weights and the grid's that is rounding."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What the operator has set. Immutable: a change swaps the whole object."""

    scalarization_M: FloatArray
    """λ on the simplex, in the surface's order of objectives."""
    control: bool = True

    @classmethod
    def parse(cls, surface: Surface, data: object) -> OperatingPoint:
        """Validate ``{"scalarization": [...] | null, "control": bool}``.

        Raises:
            ConfigurationError: an unknown key, or a value that does not fit the surface.
        """
        if not isinstance(data, dict) or set(data) - {"scalarization", "control"}:
            given = sorted(map(str, data)) if isinstance(data, dict) else repr(data)
            raise ConfigurationError(f"operating point: expected scalarization and control, got {given}")
        control = data.get("control", True)
        if not isinstance(control, bool):
            raise ConfigurationError(f"operating point: control must be true or false, got {control!r}")
        values: Any = data.get("scalarization")
        if values is None:
            values = [1.0] * len(surface.objectives)
        try:
            return cls(scalarization_M=surface.scalarization(values), control=control)
        except ScalarizationError as error:
            raise ConfigurationError(f"operating point: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known before the value network is asked."""

    control: bool
    """The operator's switch and the request's, both."""
    state_problem: Reason | None
    link: Link
    in_flight: int
    max_in_flight: int


@dataclass(frozen=True, kw_only=True)
class ValueAnswer:
    """One unchecked answer of the value network."""

    weights_W: npt.NDArray[Any]
    action: int
    values_M: npt.NDArray[Any]
    version: str = ""
    """Of the served model that chose; empty where the server does not say."""


Outcome = ValueAnswer | Reason
"""What became of the value call: an answer, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The weights of one request."""

    weights_W: FloatArray
    action: int | None
    values_M: FloatArray | None
    """Q of the chosen action per objective."""
    source: Source
    reason: Reason | None
    version: str = ""
    """Of the served model that chose."""


def refusal(situation: Situation) -> Reason | None:
    """Why the value network is not asked; None: ask it."""
    if not situation.control:
        return "control_off"
    if situation.state_problem is not None:
        return situation.state_problem
    if situation.link == "mismatch":
        return "surface_mismatch"
    if situation.link == "open":
        return "breaker_open"
    if situation.link == "unreachable":
        return "unavailable"
    if situation.in_flight >= situation.max_in_flight:
        return "overloaded"
    return None


def remaining_wait_s(*, started_s: float, now_s: float, budget_ms: float) -> float:
    """What is left of the budget, never negative. Waiting beside the ranker costs nothing extra."""
    return max(0.0, started_s + budget_ms / 1000.0 - now_s)


def check_answer(surface: Surface, answer: ValueAnswer) -> str | None:
    """What is wrong with an answer; None: it can be believed."""
    if answer.weights_W.shape != (len(surface.controlled),):
        return f"weights have shape {list(answer.weights_W.shape)}"
    if answer.values_M.shape != (len(surface.objectives),):
        return f"values have shape {list(answer.values_M.shape)}"
    if answer.weights_W.dtype.kind not in "fiu" or answer.values_M.dtype.kind not in "fiu":
        return f"weights and values are not numbers ({answer.weights_W.dtype}, {answer.values_M.dtype})"
    # A handful of numbers: Python's own floats cost a tenth of NumPy's calls, and every answer pays.
    weights, values = answer.weights_W.tolist(), answer.values_M.tolist()
    if not all(map(math.isfinite, weights + values)):
        return "the answer holds NaN or infinity"
    if not 0 <= answer.action < surface.num_actions:
        return f"action {answer.action} is outside 0..{surface.num_actions - 1}"
    for given, expected in zip(weights, surface.actions[answer.action].tolist(), strict=True):
        if abs(given - expected) > WEIGHT_TOLERANCE * max(1.0, abs(expected)):
            return f"weights {weights} are not those of action {answer.action}"
    return None


def production(surface: Surface, reason: Reason) -> Decision:
    """The production weights, and why."""
    return Decision(
        weights_W=surface.production, action=None, values_M=None, source="production", reason=reason
    )


def static(surface: Surface) -> Decision:
    """The production weights, as the policy says: no fallback."""
    return Decision(weights_W=surface.production, action=None, values_M=None, source="static", reason=None)


def explored(surface: Surface, action: int) -> Decision:
    """A drawn action of the grid."""
    weights_W = surface.actions[action]
    return Decision(weights_W=weights_W, action=action, values_M=None, source="exploration", reason=None)


def decide(surface: Surface, outcome: Outcome) -> Decision:
    """The weights of a request, from what became of its value call."""
    if isinstance(outcome, str):
        return production(surface, outcome)
    if check_answer(surface, outcome) is not None:
        return production(surface, "invalid_answer")
    return Decision(
        # The grid's own numbers, not their float32 copies.
        weights_W=surface.actions[outcome.action],
        action=outcome.action,
        values_M=np.asarray(outcome.values_M, dtype=np.float64),
        source="value_network",
        reason=None,
        version=outcome.version,
    )
