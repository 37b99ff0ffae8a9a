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

Every one of them is a sum over rows of ``S``, of the policy's choice and of ``X_i(a) = Q_λ(s_i, a) + 1{a =
a_i} (r_λi - Q_λ(s_i, a_i)) / p_i``, exact matching for every action at once: ψ_i(a) = Σ_b S[a, b] X_i(b). So
rows pass by once, in slices (:class:`Gate`), and what is kept are sums per cluster: memory does not grow with
the hold-out.

Shape legend: n rows, A actions, M objectives, P scalarizations, C clusters of users, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from ray_train.estimators_basis import utility_basis
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
MOST_CLUSTERS, LEAST_CLUSTERS = 1 << 16, 256
CLUSTER_BYTES = 1 << 28
"""Of the sums per cluster, as far as the least number of clusters allows."""
SLOPE_ROWS = 1 << 18
"""Rows that the calibration slopes are read from, spread over the hold-out; up to twice as many."""


def middle_scalarizations(objectives: int) -> FloatArray:
    """Points inside the simplex, [P, M]: every composition of M + 2 into positive parts, over M + 2."""
    total = objectives + 2
    points = [p for p in product(range(1, total + 1), repeat=objectives) if sum(p) == total]
    return np.array(points, dtype=np.float64) / total


class Logged:
    """Sums over logged rows that say what every action is worth to everybody, without a network."""

    def __init__(self, actions: int, objectives: int) -> None:
        self.reward_AM = np.zeros((actions, objectives))
        """``Σ r / p``."""
        self.inverse_A = np.zeros(actions)
        """``Σ 1 / p``."""
        self.reward_M = np.zeros(objectives)
        self.rows = 0

    def add(self, rows: Arrays, which_n: npt.NDArray[np.bool_] | slice = slice(None)) -> Logged:
        """Count rows in, or some of them."""
        action_n, reward_nM = rows["action"][which_n], rows["rewards"][which_n].astype(np.float64)
        inverse_n = 1.0 / rows["propensity"][which_n].astype(np.float64)
        np.add.at(self.reward_AM, action_n, reward_nM * inverse_n[:, None])
        np.add.at(self.inverse_A, action_n, inverse_n)
        self.reward_M += reward_nM.sum(axis=0)
        self.rows += len(action_n)
        return self

    def with_(self, other: Logged) -> Logged:
        """The sums of both."""
        both = Logged(*self.reward_AM.shape)
        for name, value in vars(self).items():
            setattr(both, name, value + getattr(other, name))
        return both

    def best_static(self, smoother_AA: FloatArray, scalarization_PM: FloatArray) -> Actions:
        """``argmax_a Σ_i S[a, a_i] (r_λi - r̄_λ) / p_i``, [P]."""
        surprise_AM = self.reward_AM - self.inverse_A[:, None] * (self.reward_M / max(self.rows, 1))
        return np.asarray((smoother_AA @ surprise_AM @ scalarization_PM.T).argmax(axis=0))


class Thinned:
    """Evenly spread rows of a stream: every one, then every second, every fourth …, never many more."""

    def __init__(self, most: int) -> None:
        self.most, self.step, self.seen, self.kept = most, 1, 0, 0
        self.parts: list[Arrays] = []

    def add(self, rows: Arrays) -> None:
        """Take the next rows."""
        first, count = -self.seen % self.step, len(next(iter(rows.values())))
        self.parts.append({name: array[first :: self.step] for name, array in rows.items()})
        self.seen += count
        self.kept += len(range(first, count, self.step))
        if self.kept >= 2 * self.most:
            whole = self.whole()
            self.parts = [{name: array[::2] for name, array in whole.items()}]
            self.step, self.kept = 2 * self.step, -(-self.kept // 2)

    def whole(self) -> Arrays:
        """All that was kept."""
        return {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}


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


class Gate:
    """Judges a network on hold-out rows as they come; see the module."""

    def __init__(self, surface: Surface, network: ValueNetwork, earlier: Arrays) -> None:
        """``earlier`` are rows of the training window; they help to choose the static vectors."""
        self.surface, self.network = surface, network
        actions, objectives = surface.num_actions, len(surface.objectives)
        self.scalarization_PM = middle_scalarizations(objectives)
        points = len(self.scalarization_PM)
        self.hat_AA = utility_basis(surface).hat_AA
        self.contrast_AM = average_contrast(surface, network, earlier)
        self.earlier = Logged(actions, objectives).add(earlier)
        self.logged_F = [Logged(actions, objectives) for _ in range(FOLDS)]
        self.clusters = clusters_within(CLUSTER_BYTES, 8 * points * actions)
        self.rows_C = np.zeros(self.clusters)
        self.exact_CPA = np.zeros((self.clusters, points, actions))
        """``Σ X``."""
        self.policy_C2P = np.zeros((self.clusters, 2, points))
        """``Σ ψ`` and ``Σ X`` of the policy's choice."""
        self.chosen_FPA = np.zeros((FOLDS, points, actions))
        """How often the policy chooses what."""
        self.chosen_q_PM = np.zeros((points, objectives))
        self.q_FAM = np.zeros((FOLDS, actions, objectives))
        self.contrasts = Thinned(SLOPE_ROWS)

    def add(self, rows: Arrays) -> None:
        """Hold-out rows with ``propensity`` and ``user``."""
        for part in slices(rows):
            self._add(part)

    def _add(self, part: Arrays) -> None:
        q_BAM = action_values(self.surface, self.network, part).astype(np.float64)
        index, action_B = np.arange(len(q_BAM)), part["action"].astype(np.intp)
        cluster_B = part["user"].astype(np.int64) % self.clusters
        fold_B = cluster_B % FOLDS
        exact_BPA = np.swapaxes(q_BAM @ self.scalarization_PM.T, 1, 2)
        chosen_BP = exact_BPA.argmax(axis=2)
        surprise_BP = part["rewards"] @ self.scalarization_PM.T - exact_BPA[index, :, action_B]
        exact_BPA[index, :, action_B] += surprise_BP / part["propensity"].astype(np.float64)[:, None]
        policy_B2P = np.stack(
            [
                (self.hat_AA[chosen_BP] * exact_BPA).sum(axis=2),
                np.take_along_axis(exact_BPA, chosen_BP[..., None], axis=2)[..., 0],
            ],
            axis=1,
        )
        order_B = np.argsort(cluster_B, kind="stable")
        found_K, first_K = np.unique(cluster_B[order_B], return_index=True)
        self.rows_C += np.bincount(cluster_B, minlength=self.clusters)
        self.exact_CPA[found_K] += np.add.reduceat(exact_BPA[order_B], first_K, axis=0)
        self.policy_C2P[found_K] += np.add.reduceat(policy_B2P[order_B], first_K, axis=0)
        np.add.at(self.chosen_FPA, (fold_B[:, None], np.arange(chosen_BP.shape[1]), chosen_BP), 1.0)
        self.chosen_q_PM += q_BAM[index[:, None], chosen_BP].sum(axis=0)
        for fold, logged in enumerate(self.logged_F):
            logged.add(part, fold_B == fold)
            self.q_FAM[fold] += q_BAM[fold_B == fold].sum(axis=0)
        logit_BAM = _logit(q_BAM)
        level_BM = logit_BAM.mean(axis=1) + self.contrast_AM[action_B]
        personal_BM = logit_BAM[index, action_B] - level_BM
        kept = {"level": level_BM, "personal": personal_BM, "rewards": part["rewards"], "user": part["user"]}
        self.contrasts.add(kept)

    def verdict(self, log_rows: int) -> RunVerdict:
        """On the rows so far; ``log_rows`` are those of the whole log, for the advice on more."""
        hat_AA, lam_PM = self.hat_AA, self.scalarization_PM
        rows, points = float(self.rows_C.sum()), np.arange(len(lam_PM))
        static_FP = np.stack([self._others(fold).best_static(hat_AA, lam_PM) for fold in range(FOLDS)])
        static_CP = static_FP[np.arange(self.clusters) % FOLDS]
        strongest_P = np.einsum("ab,pb->pa", hat_AA, self.exact_CPA.sum(axis=0)).argmax(axis=1)
        production_A = production_policy(self.surface, "smooth").probability_A @ hat_AA
        smooth_CP, exact_CP = self.policy_C2P[:, 0], self.policy_C2P[:, 1]
        production_CP = self.exact_CPA @ production_A
        scale_P = production_CP.sum(axis=0) / rows
        rival_CP = (self.exact_CPA * hat_AA[static_CP]).sum(axis=2)
        strongest_CP = (self.exact_CPA * hat_AA[strongest_P]).sum(axis=2)
        exact_rival_CP = np.take_along_axis(self.exact_CPA, static_CP[..., None], axis=2)[..., 0]
        strongest, static, exact, production = (
            _mean((difference_CP / scale_P).mean(axis=1), self.rows_C)
            for difference_CP in (
                smooth_CP - strongest_CP,
                smooth_CP - rival_CP,
                exact_CP - exact_rival_CP,
                smooth_CP - production_CP,
            )
        )
        seen = self.contrasts.whole()
        slopes = calibration_slopes(seen["level"], seen["personal"], seen["rewards"], seen["user"])
        static_q_PM = sum(self.q_FAM[fold][static_FP[fold]] for fold in range(FOLDS))
        same = sum(self.chosen_FPA[fold, points, static_FP[fold]].sum() for fold in range(FOLDS))
        same = float(same / (rows * len(points)))
        level = decide(static, strongest, production, exact, same)
        best_P = self._others(None).best_static(hat_AA, lam_PM)
        more = more_rows([static, production], log_rows)
        gain_PM = (self.chosen_q_PM - static_q_PM) / rows * lam_PM / scale_P[:, None]
        return RunVerdict(
            level=level,
            text=_text(level, static, production, more),
            versus_static=static,
            versus_strongest=strongest,
            versus_production=production,
            exact=exact,
            calibrated=_calibrated(slopes, gain_PM.mean(axis=0)),
            slopes=tuple(slopes.slope_M.tolist()),
            slope_errors=tuple(slopes.error_M.tolist()),
            scalarizations=tuple(tuple(row) for row in lam_PM.tolist()),
            static_weights=tuple(tuple(self.surface.actions[action].round(4).tolist()) for action in best_P),
            same_as_static=same,
            rows=int(rows),
            more_rows=more if level == "not yet" else None,
        )

    def _others(self, fold: int | None) -> Logged:
        """The earlier rows and the hold-out's of the other folds; of all folds for None."""
        logged = self.earlier
        for number, other in enumerate(self.logged_F):
            if number != fold:
                logged = logged.with_(other)
        return logged


def clusters_within(size_bytes: int, cluster_bytes: int) -> int:
    """Clusters to put users into by their number: as many as fit, a multiple of the folds.

    Users who share one make no interval wrong, as they are independent of each other; fewer clusters only
    make its width less certain, by ``1 / √(2 C)``.
    """
    wanted = min(MOST_CLUSTERS, max(LEAST_CLUSTERS, size_bytes // cluster_bytes))
    return wanted // FOLDS * FOLDS


def judge(
    surface: Surface, network: ValueNetwork, *, earlier: Arrays, holdout: Arrays, log_rows: int
) -> RunVerdict:
    """The verdict on a fitted network, of rows that are in memory.

    Args:
        surface: its surface.
        network: the network as it would be served.
        earlier: rows of the training window; help to choose the static vectors.
        holdout: later rows; both with ``propensity``, these with ``user``.
        log_rows: rows of the log altogether, for the advice on more.
    """
    gate = Gate(surface, network, earlier)
    gate.add(holdout)
    return gate.verdict(log_rows)


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


def _mean(sum_C: FloatArray, rows_C: FloatArray) -> Estimate:
    """A mean with its interval, from sums and numbers of rows per cluster."""
    rows = float(rows_C.sum())
    mean = float(sum_C.sum()) / rows
    return _interval(mean, float(np.sqrt(np.square(sum_C - mean * rows_C).sum())) / rows)


def _interval(estimate: float, error: float) -> Estimate:
    return Estimate(estimate=estimate, low=estimate - Z_95 * error, high=estimate + Z_95 * error)


def _calibrated(slopes: Slopes, gain_M: FloatArray) -> Estimate:
    """``Σ_m κ_m g_m`` of the mean predicted gains; slopes of the objectives taken as independent."""
    error = float(np.sqrt(np.square(slopes.error_M * gain_M).sum()))
    return _interval(float(slopes.slope_M @ gain_M), error)


def _logit(q: FloatArray) -> FloatArray:
    clipped = np.clip(q, 1e-7, 1.0 - 1e-7)
    return np.asarray(np.log(clipped / (1.0 - clipped)))
