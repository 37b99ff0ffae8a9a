"""What a turn applies: what gate and candidate rule recommend, or else static weights, said so.

A point is recommended where the run passed the gate of ``fit`` and the sweep has a *non-degrading*
candidate: no objective below production at the lower end of its band. Where nothing is recommended, the
turn is made whole all the same: the knee, by its lower ends, is tested, as an A/B test may, and it is written
down that the production weights were recommended.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.demo import default_operating_point
from ray_train.pareto import NON_DEGRADING
from serve.policy import STATIC
from triton_models.frontier import Frontier
from triton_models.runs import RunVerdict


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is tested, and what was recommended."""

    tested: str
    """Label of a candidate."""
    recommended: str
    """The label of a candidate, or ``static``."""
    why: str


def choose(frontier: Frontier, verdict: RunVerdict | None, *, asked_for: str | None = None) -> Choice:
    """What to test.

    Raises:
        BenchmarkError: the frontier has no candidates at all.
    """
    recommended, why = _recommended(frontier, verdict)
    fallback = default_operating_point(frontier) if recommended == STATIC else recommended
    return Choice(tested=asked_for or fallback, recommended=recommended, why=why)


def _recommended(frontier: Frontier, verdict: RunVerdict | None) -> tuple[str, str]:
    candidate = frontier.candidates.get(NON_DEGRADING)
    if candidate is None or not candidate.lower_bounds_not_negative:
        return STATIC, "no operating point whose lifts are all at least 0 at the lower end"
    if verdict is not None and not verdict.passed:
        return STATIC, f"the run did not pass the gate: {verdict.text}"
    return NON_DEGRADING, "no objective below production at the lower end, and the run passed the gate"
