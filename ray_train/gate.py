"""Would this run beat production, and one static vector? Judged on the hold-out, before anybody serves it.

For scalarizations λ in the middle of the simplex: the run's policy ``a(s) = argmax_a Σ_m λ_m Q_m(s, a)``
against production and against the *best static* vector. Paired, on rows that are later than everything the
network saw, doubly robust, with the run's own Q as model and the smoother S of
:class:`~ray_train.estimators_smooth.ProjectionDR` (without damping)::

    ψ_i(π) = Σ_a S[π(s_i), a] Q_λ(s_i, a) + S[π(s_i), a_i] / p_i · (r_λi - Q_λ(s_i, a_i))

Q cannot bias it, since propensities are known and the rows are new: an action that the policy chose because Q
overrates it is valued by the rewards around *that* action. Two policies that are near each other on the grid
share rows, so the difference is far less noisy than exact matching (S = 1), which is computed beside it: it
needs no assumption on how the reward runs over the grid, and a pass must not contradict it.

The best static vector is not known either, and a rival that was chosen badly is easily beaten. So there are
two:

* the one *chosen on other rows* and without the network, ``argmax_a Σ_i S[a, a_i] (r_λi - r̄_λ) / p_i`` over
  the earlier rows and the other half of the hold-out's users. The interval against it must lie above zero; a
  policy whose interval lies below is ``worse``;
* the one *chosen on the same rows*, ``argmax_a Σ_i ψ_i(a)``. It profits from their noise, so its value is
  never below that of the truly best vector as these rows see it: the estimate against it must be above zero.

The *calibrated* estimate, the gain that the run promises times the calibration slope of its contrasts, is
kept in the verdict as a diagnosis and decides nothing: it takes the slope over all actions for the slope at
the chosen ones, where a maximum picks errors.

All are means over λ in per cent of production's value, with 95 % normal intervals clustered by user.

Shape legend: n rows, A actions, M objectives, P scalarizations, U users, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from ray_train.estimators_basis import ActionBasis, utility_basis
from ray_train.in_process import state_of
from ray_train.ingest import Arrays
from ray_train.production import production_policy
from ray_train.shrinkage import Slopes, calibration_slopes
from triton_models.network import ValueNetwork
from triton_models.runs import Estimate, Level, RunVerdict
from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]
Actions = npt.NDArray[np.intp]

MICRO_ROWS = 512
Z_95 = 1.959964
WORTH_KNOWING = 0.005
"""Gain, as a share of production's value, that the next log should be able to tell from nothing."""
SAME_POLICY = 0.005
"""Share of requests below which a policy is the static vector."""
MOST_ROWS_ADVISED = 100_000_000
FOLDS = 2
"""Of the hold-out's users: the static vector of one was chosen on the others."""


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
    policy_nP: FloatArray
    """ψ(policy), scalarized."""
    coefficient_nPB: npt.NDArray[np.float32]
    """Q_λ in the functions of the smoother's basis."""
    surprise_nP: FloatArray
    """``(r_λi - Q_λ(s_i, a_i)) / p_i``."""
    exact_difference_nP: FloatArray
    """Policy less the static vector of other rows, with exact matching."""
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


def average_contrast(surface: Surface, network: ValueNetwork, rows: Arrays) -> FloatArray:
    """Mean contrast of every action in log-odds, [A, M]."""
    contrast_AM = np.zeros((surface.num_actions, len(surface.objectives)))
    for part in slices(rows):
        logit_BAM = _logit(action_values(surface, network, part).astype(np.float64))
        contrast_AM += (logit_BAM - logit_BAM.mean(axis=1, keepdims=True)).sum(axis=0)
    return contrast_AM / len(rows["action"])


def best_static(smoother_AA: FloatArray, parts: Sequence[Arrays], scalarization_PM: FloatArray) -> Actions:
    """``argmax_a Σ_i S[a, a_i] (r_λi - r̄_λ) / p_i`` over all rows of the parts, [P]."""
    columns = ("action", "propensity", "rewards")
    action_n, propensity_n, reward_nM = (np.concatenate([part[name] for part in parts]) for name in columns)
    inverse_n = 1.0 / propensity_n.astype(np.float64)
    reward_nM = reward_nM.astype(np.float64)
    surprise_nP = (reward_nM - reward_nM.mean(axis=0)) @ scalarization_PM.T * inverse_n[:, None]
    size = len(smoother_AA)
    sum_AP = np.stack([np.bincount(action_n, weights=one, minlength=size) for one in surprise_nP.T], axis=1)
    return np.asarray((smoother_AA @ sum_AP).argmax(axis=0))


def score(
    surface: Surface,
    network: ValueNetwork,
    rows: Arrays,
    scalarization_PM: FloatArray,
    static_nP: Actions,
    contrast_AM: FloatArray,
) -> Scored:
    """One pass over the hold-out."""
    found: dict[str, list[FloatArray]] = {}
    basis = utility_basis(surface)
    production_A = production_policy(surface, "smooth").probability_A @ basis.hat_AA
    start = 0
    for part in slices(rows):
        q_BAM = action_values(surface, network, part).astype(np.float64)
        index, action = np.arange(len(q_BAM)), part["action"].astype(np.intp)
        static_BP = static_nP[start : start + len(index)]
        start += len(index)
        q_BAP = q_BAM @ scalarization_PM.T
        chosen_BP = q_BAP.argmax(axis=1)
        surprise_BP = part["rewards"] @ scalarization_PM.T - q_BAP[index, action]
        surprise_BP = surprise_BP / part["propensity"].astype(np.float64)[:, None]
        coefficient_BPB = basis.coefficients(q_BAP)
        psi_policy = smoothed(basis, coefficient_BPB, surprise_BP, action, chosen_BP)
        psi_production = (
            np.einsum("bap,a->bp", q_BAP, production_A) + production_A[action][:, None] * surprise_BP
        )
        gain_BP = q_BAP.max(axis=1) - np.take_along_axis(q_BAP, static_BP[:, None, :], axis=1)[:, 0]
        hits_BP = (chosen_BP == action[:, None]).astype(np.float64) - (static_BP == action[:, None])
        logit_BAM = _logit(q_BAM)
        level_BM = logit_BAM.mean(axis=1) + contrast_AM[action]
        rows_B1 = index[:, None]
        values = {
            "predicted_nPM": q_BAM[rows_B1, chosen_BP] - q_BAM[rows_B1, static_BP],
            "policy_nP": psi_policy,
            "coefficient_nPB": coefficient_BPB,
            "surprise_nP": surprise_BP,
            "exact_difference_nP": gain_BP + hits_BP * surprise_BP,
            "production_nP": psi_production,
            "same_nP": chosen_BP == static_BP,
            "level_nM": level_BM,
            "personal_nM": logit_BAM[index, action] - level_BM,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return Scored(**{name: np.concatenate(parts) for name, parts in found.items()})  # type: ignore[arg-type]


def smoothed(
    basis: ActionBasis,
    coefficient_nPB: npt.NDArray[np.float32],
    surprise_nP: FloatArray,
    action_n: Actions,
    chosen_nP: Actions,
) -> FloatArray:
    """``ψ_i`` of a policy that chooses ``chosen_nP``, [n, P]."""
    value_nP = np.einsum("npb,npb->np", basis.values_AB[chosen_nP], coefficient_nPB)
    return np.asarray(value_nP + basis.hat_AA[chosen_nP, action_n[:, None]] * surprise_nP)


def strongest_static(basis: ActionBasis, scored: Scored, action_n: Actions) -> Actions:
    """``argmax_a Σ_i ψ_i(a)``, [P]: the best static vector as these very rows see it."""
    size = len(basis.values_AB)
    value_AP = basis.values_AB @ scored.coefficient_nPB.sum(axis=0, dtype=np.float64).T
    binned_AP = np.stack(
        [np.bincount(action_n, weights=one, minlength=size) for one in scored.surprise_nP.T], axis=1
    )
    return np.asarray((value_AP + basis.hat_AA @ binned_AP).argmax(axis=0))


def judge(
    surface: Surface, network: ValueNetwork, *, earlier: Arrays, holdout: Arrays, log_rows: int
) -> RunVerdict:
    """The verdict on a fitted network.

    Args:
        surface: its surface.
        network: the network as it would be served.
        earlier: rows of the training window; help to choose the static vectors.
        holdout: later rows; both with ``propensity``, these with ``user``.
        log_rows: rows of the log altogether, for the advice on more.
    """
    scalarization_PM = middle_scalarizations(len(surface.objectives))
    contrast_AM = average_contrast(surface, network, earlier)
    _, user_n = np.unique(holdout["user"], return_inverse=True)
    fold_n = user_n % FOLDS
    basis, action_n = utility_basis(surface), holdout["action"].astype(np.intp)
    static_FP = np.stack(
        [
            best_static(basis.hat_AA, [earlier, _others(holdout, fold_n != fold)], scalarization_PM)
            for fold in range(FOLDS)
        ]
    )
    static_nP = static_FP[fold_n]
    scored = score(surface, network, holdout, scalarization_PM, static_nP, contrast_AM)
    strongest_P = strongest_static(basis, scored, action_n)
    rivals = (np.broadcast_to(strongest_P, static_nP.shape), static_nP)
    scale_P = scored.production_nP.mean(axis=0)
    strongest, static, exact, production = (
        _mean((difference_nP / scale_P).mean(axis=1), user_n)
        for difference_nP in (
            *(scored.policy_nP - _psi(basis, scored, action_n, rival_nP) for rival_nP in rivals),
            scored.exact_difference_nP,
            scored.policy_nP - scored.production_nP,
        )
    )
    slopes = calibration_slopes(scored.level_nM, scored.personal_nM, holdout["rewards"], holdout["user"])
    same = float(scored.same_nP.mean())
    level = decide(static, strongest, production, exact, same)
    best_P = best_static(basis.hat_AA, [earlier, holdout], scalarization_PM)
    more = more_rows([static, production], log_rows)
    return RunVerdict(
        level=level,
        text=_text(level, static, production, more),
        versus_static=static,
        versus_strongest=strongest,
        versus_production=production,
        exact=exact,
        calibrated=_calibrated(scored, slopes, scalarization_PM, scale_P),
        slopes=tuple(slopes.slope_M.tolist()),
        slope_errors=tuple(slopes.error_M.tolist()),
        scalarizations=tuple(tuple(row) for row in scalarization_PM.tolist()),
        static_weights=tuple(tuple(surface.actions[action].round(4).tolist()) for action in best_P),
        same_as_static=same,
        rows=len(user_n),
        more_rows=more if level == "not yet" else None,
    )


def decide(
    static: Estimate, strongest: Estimate, production: Estimate, exact: Estimate, same: float
) -> Level:
    """The level, from four estimates and the share of requests that get the static vector anyway.

    Args:
        static: against the static vector that was chosen on other rows.
        strongest: against the one that was chosen on the same rows.
        production: against production.
        exact: against the one of other rows by exact matching; a pass must not contradict it.
        same: share of requests for which the policy chooses the one of other rows.
    """
    if static.high < 0 or production.high < 0:
        return "worse"
    if same > 1.0 - SAME_POLICY:
        return "static"
    if min(static.low, production.low) > 0 and strongest.estimate > 0 and exact.high > 0:
        return "better"
    return "not yet"


def more_rows(estimates: Sequence[Estimate], log_rows: int) -> int | None:
    """Rows to add until all intervals exclude zero: their width shrinks like 1 / √rows; None if too many.

    Where an estimate is not above :data:`WORTH_KNOWING`, until a gain of that size would be seen.
    """
    total = 0.0
    for one in estimates:
        half = (one.high - one.low) / 2.0
        total = max(total, log_rows * (half / max(one.estimate, WORTH_KNOWING)) ** 2)
    if not np.isfinite(total) or total > MOST_ROWS_ADVISED:
        return None
    # What the interval needs is also what training would have to learn from: never less than as much again.
    return int(max(total - log_rows, log_rows))


def _psi(basis: ActionBasis, scored: Scored, action_n: Actions, chosen_nP: Actions) -> FloatArray:
    return smoothed(basis, scored.coefficient_nPB, scored.surprise_nP, action_n, chosen_nP)


def _others(rows: Arrays, which_n: npt.NDArray[np.bool_]) -> Arrays:
    """What :func:`best_static` reads, of some of the rows."""
    return {name: rows[name][which_n] for name in ("action", "propensity", "rewards")}


def _text(level: Level, static: Estimate, production: Estimate, more: int | None) -> str:
    against = f"against the best static vector {_percent(static)}, against production {_percent(production)}"
    if level == "better":
        return f"better than production and than the best static vector: {against}"
    if level == "worse":
        return f"worse on the hold-out: {against}"
    if level == "static":
        return f"nothing to personalize found: the run serves the best static vector to everybody; {against}"
    if min(static.low, production.low) > 0:
        against += "; but not above the static vector that these rows themselves like best"
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
