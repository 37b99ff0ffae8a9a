"""Would this run beat production, and one static vector? Judged on the hold-out, before anybody serves it.

For scalarizations λ in the middle of the simplex: the run's policy ``a(s) = argmax_a Σ_m λ_m Q_m(s, a)``
against production and against the *best static* vector, ``argmax_a mean_s Σ_m λ_m Q_m(s, a)`` over rows of
the training window. Paired, on rows that are later than everything the network saw, in two ways:

* **assumption-free**: doubly robust (Dudík, Langford & Li, ICML 2011) with the run's own Q as model, which
  cannot bias it, since propensities are known and the rows are new ::

      ψ_i(π) = Σ_a π(a | s_i) Q_λ(s_i, a) + π(a_i | s_i) / p_i · (r_λi - Q_λ(s_i, a_i))

  The difference needs rows whose logged action is one of the two policies': 2 in A.
* **calibrated**: the gain that the run predicts for itself, per objective, times the calibration slope κ_m of
  its personal contrasts on the hold-out (:func:`ray_train.shrinkage.calibration_slopes`): 1 where what it
  promises comes true, 0 where it promised noise. Every row tells something about κ, so the interval is far
  narrower; it assumes that contrasts are as true at the chosen actions as they are elsewhere. They are
  not quite, since a maximum picks errors: in the simulated feed it said 1.6 and 3.2
  times the truth (``benchmarks/RESULTS.md``).

Both are means over λ in per cent of production's value, with 95 % normal intervals clustered by user.

Shape legend: n rows, A actions, M objectives, P scalarizations, U users.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from ray_train.in_process import state_of
from ray_train.ingest import Arrays
from ray_train.shrinkage import Slopes, calibration_slopes
from triton_models.network import ValueNetwork
from triton_models.runs import Estimate, Level, RunVerdict
from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]

MICRO_ROWS = 512
Z_95 = 1.959964
WORTH_KNOWING = 0.005
"""Gain, as a share of production's value, that the next log should be able to tell from nothing."""
SAME_POLICY = 0.005
"""Share of requests below which a policy is the static vector."""
MOST_ROWS_ADVISED = 100_000_000


def middle_scalarizations(objectives: int) -> FloatArray:
    """Points inside the simplex, [P, M]: every composition of M + 2 into positive parts, over M + 2."""
    total = objectives + 2
    points = [p for p in product(range(1, total + 1), repeat=objectives) if sum(p) == total]
    return np.array(points, dtype=np.float64) / total


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the gate keeps of the rows after one pass of the network."""

    predicted_nPM: FloatArray
    """Q of the policy less Q of the static vector."""
    static_difference_nP: FloatArray
    """ψ(policy) - ψ(best static), scalarized."""
    production_difference_nP: FloatArray
    production_nP: FloatArray
    """ψ(production)."""
    same_nP: npt.NDArray[np.bool_]
    """Whether the policy chooses the static action."""
    level_nM: FloatArray
    """Level and average contrast of the logged action, in log-odds."""
    personal_nM: FloatArray


@torch.inference_mode()
def action_values(surface: Surface, network: ValueNetwork, rows: Arrays) -> npt.NDArray[np.float32]:
    """Q of every action, [n, A, M]; call it on a slice at a time."""
    return network.action_values(state_of(surface, rows)).numpy()


def slices(rows: Arrays, size: int = MICRO_ROWS) -> list[Arrays]:
    """The rows in order, a few at a time."""
    count = len(rows["action"])
    return [{name: array[i : i + size] for name, array in rows.items()} for i in range(0, count, size)]


def average_answers(surface: Surface, network: ValueNetwork, rows: Arrays) -> tuple[FloatArray, FloatArray]:
    """Mean Q of every action, and the mean contrast in log-odds, both [A, M]."""
    value_AM, contrast_AM = np.zeros((2, surface.num_actions, len(surface.objectives)))
    for part in slices(rows):
        q_BAM = action_values(surface, network, part).astype(np.float64)
        value_AM += q_BAM.sum(axis=0)
        logit_BAM = _logit(q_BAM)
        contrast_AM += (logit_BAM - logit_BAM.mean(axis=1, keepdims=True)).sum(axis=0)
    return value_AM / len(rows["action"]), contrast_AM / len(rows["action"])


def score(
    surface: Surface,
    network: ValueNetwork,
    rows: Arrays,
    scalarization_PM: FloatArray,
    static_P: npt.NDArray[np.intp],
    contrast_AM: FloatArray,
) -> Scored:
    """One pass over the hold-out."""
    found: dict[str, list[FloatArray]] = {}
    production_A = surface.production_mixture()
    for part in slices(rows):
        q_BAM = action_values(surface, network, part).astype(np.float64)
        index, action = np.arange(len(q_BAM)), part["action"].astype(np.intp)
        q_BAP = q_BAM @ scalarization_PM.T
        chosen_BP = q_BAP.argmax(axis=1)
        inverse_B1 = 1.0 / part["propensity"].astype(np.float64)[:, None]
        surprise_BP = (part["rewards"] @ scalarization_PM.T - q_BAP[index, action]) * inverse_B1
        psi_policy = q_BAP.max(axis=1) + (chosen_BP == action[:, None]) * surprise_BP
        q_static_BP = q_BAP[:, static_P, np.arange(len(static_P))]
        psi_static = q_static_BP + (static_P == action[:, None]) * surprise_BP
        psi_production = (
            np.einsum("bap,a->bp", q_BAP, production_A) + production_A[action][:, None] * surprise_BP
        )
        logit_BAM = _logit(q_BAM)
        level_BM = logit_BAM.mean(axis=1) + contrast_AM[action]
        values = {
            "predicted_nPM": q_BAM[index[:, None], chosen_BP] - q_BAM[:, static_P],
            "static_difference_nP": psi_policy - psi_static,
            "production_difference_nP": psi_policy - psi_production,
            "production_nP": psi_production,
            "same_nP": chosen_BP == static_P,
            "level_nM": level_BM,
            "personal_nM": logit_BAM[index, action] - level_BM,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return Scored(**{name: np.concatenate(parts) for name, parts in found.items()})  # type: ignore[arg-type]


def judge(
    surface: Surface, network: ValueNetwork, *, earlier: Arrays, holdout: Arrays, log_rows: int
) -> RunVerdict:
    """The verdict on a fitted network.

    Args:
        surface: its surface.
        network: the network as it would be served.
        earlier: rows of the training window; choose the static vectors.
        holdout: later rows, with ``propensity`` and ``user``.
        log_rows: rows of the log altogether, for the advice on more.
    """
    scalarization_PM = middle_scalarizations(len(surface.objectives))
    value_AM, contrast_AM = average_answers(surface, network, earlier)
    static_P = (value_AM @ scalarization_PM.T).argmax(axis=0)
    scored = score(surface, network, holdout, scalarization_PM, static_P, contrast_AM)
    _, user_n = np.unique(holdout["user"], return_inverse=True)
    scale_P = scored.production_nP.mean(axis=0)
    static = _mean((scored.static_difference_nP / scale_P).mean(axis=1), user_n)
    production = _mean((scored.production_difference_nP / scale_P).mean(axis=1), user_n)
    slopes = calibration_slopes(scored.level_nM, scored.personal_nM, holdout["rewards"], holdout["user"])
    calibrated = _calibrated(scored, slopes, scalarization_PM, scale_P)
    same = float(scored.same_nP.mean())
    level = decide(static, production, calibrated, same)
    weights = [surface.actions[action].round(4).tolist() for action in static_P]
    more = more_rows(calibrated, log_rows)
    return RunVerdict(
        level=level,
        text=_text(level, static, production, calibrated, more),
        versus_static=static,
        versus_production=production,
        calibrated=calibrated,
        slopes=tuple(slopes.slope_M.tolist()),
        slope_errors=tuple(slopes.error_M.tolist()),
        scalarizations=tuple(tuple(row) for row in scalarization_PM.tolist()),
        static_weights=tuple(tuple(row) for row in weights),
        same_as_static=same,
        rows=len(user_n),
        more_rows=more if level == "not yet" else None,
    )


def decide(static: Estimate, production: Estimate, calibrated: Estimate, same: float) -> Level:
    """The level, from three estimates and the share of requests that get the static vector anyway."""
    if static.high < 0 or production.high < 0:
        return "worse"
    if same > 1.0 - SAME_POLICY:
        return "static"
    if static.low > 0 and production.low > 0:
        return "better"
    return "calibrated" if calibrated.low > 0 else "not yet"


def more_rows(calibrated: Estimate, log_rows: int) -> int | None:
    """Rows to add until the calibrated interval excludes zero: its width shrinks like 1 / √rows.

    Where the estimate is not above :data:`WORTH_KNOWING`, until a gain of that size would be seen.
    """
    half = (calibrated.high - calibrated.low) / 2.0
    wanted = max(calibrated.estimate, WORTH_KNOWING)
    total = log_rows * (half / wanted) ** 2
    if not np.isfinite(total) or total > MOST_ROWS_ADVISED:
        return None
    # What the interval needs is also what training would have to learn from: never less than as much again.
    return int(max(total - log_rows, log_rows))


def _text(
    level: Level, static: Estimate, production: Estimate, calibrated: Estimate, more: int | None
) -> str:
    against = (
        f"against the best static vector {_percent(calibrated)} calibrated, {_percent(static)} "
        "assumption-free; "
        f"against production {_percent(production)} assumption-free"
    )
    if level == "better":
        return f"better than production and than the best static vector: {against}"
    if level == "calibrated":
        return (
            f"likely better than the best static vector: {against}; the assumption-free intervals alone do "
            "not tell: confirm in an A/B test"
        )
    if level == "worse":
        return f"worse on the hold-out: {against}"
    if level == "static":
        return f"nothing to personalize found: the run serves the best static vector to everybody; {against}"
    need = "more rows than are worth collecting" if more is None else f"about {more:,} more rows"
    return f"not yet: {need} are needed to tell; {against}"


def _percent(value: Estimate) -> str:
    return f"{value.estimate:+.2%} [{value.low:+.2%}, {value.high:+.2%}]"


def _mean(value_n: FloatArray, user_n: npt.NDArray[np.intp]) -> Estimate:
    """A mean with its interval, clustered by user."""
    mean = float(value_n.mean())
    sums_U = np.bincount(user_n, weights=value_n - mean)
    return _interval(mean, float(np.sqrt(np.square(sums_U).sum())) / len(value_n))


def _interval(estimate: float, error: float) -> Estimate:
    return Estimate(estimate=estimate, low=estimate - Z_95 * error, high=estimate + Z_95 * error)


def _calibrated(
    scored: Scored, slopes: Slopes, scalarization_PM: FloatArray, scale_P: FloatArray
) -> Estimate:
    """Σ_m κ_m g_m with ``g_m`` the mean predicted gain; slopes of the objectives taken as independent."""
    gain_PM = scored.predicted_nPM.mean(axis=0) * scalarization_PM / scale_P[:, None]
    gain_M = gain_PM.mean(axis=0)
    error = float(np.sqrt(np.square(slopes.error_M * gain_M).sum()))
    return _interval(float(slopes.slope_M @ gain_M), error)


def _logit(q: FloatArray) -> FloatArray:
    clipped = np.clip(q, 1e-7, 1.0 - 1e-7)
    return np.asarray(np.log(clipped / (1.0 - clipped)))
