"""What the policies of fitted runs are really worth in the simulated feed, and whether two differ.

New requests after the log, whose expected rewards are known for every action. For a scalarization λ and a
run's choices ``a(s) = argmax_a Σ_m λ_m Q_m(s, a)``:

    value     v = mean_s Σ_m λ_m E[r_m | s, a(s)]
    captured  (v - best static) / (best request-level - best static)

Runs are compared on the same requests: ``(v - v') / production``, with a bootstrap interval over requests.

Shape legend: n requests, A actions, M objectives, P scalarizations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed.truth import Truth
from triton_models.runs import Run
from triton_models.tensors import state_specs

FloatArray = npt.NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Worth:
    """One run over all scalarizations, beside the first run."""

    run_id: str
    captured_P: FloatArray
    difference_P: FloatArray
    """Relative to production, from the first run."""
    interval_P2: FloatArray
    mean_difference: tuple[float, float, float]
    """Over the scalarizations, with its interval."""


def chosen_actions(
    run: Run, state: dict[str, npt.NDArray[np.generic]], scalarization_PM: FloatArray
) -> npt.NDArray[np.int16]:
    """The run's actions, [n, P]."""
    import torch

    from ray_train.scoring import choose_actions

    arrays = {
        spec.name: np.ascontiguousarray(state[spec.name], dtype=spec.dtype)
        for spec in state_specs(run.surface)
    }
    cpu = torch.device("cpu")
    return choose_actions(run.surface, run.load_network(), arrays, scalarization_PM, cpu)


def worth_of(
    truth: Truth,
    run_ids: Sequence[str],
    chosen: Sequence[npt.NDArray[np.integer[Any]]],
    scalarization_PM: FloatArray,
    *,
    seed: int = 0,
) -> list[Worth]:
    """Value every run's choices; the first run is what the others are compared with."""
    m = truth.objectives
    q_nAM = truth.action_values_nAR[:, :, :m]
    rows = np.arange(len(q_nAM))
    resample = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    values_RnP = np.stack(
        [
            np.stack(
                [q_nAM[rows, actions[:, p]] @ scalarization_PM[p] for p in range(len(scalarization_PM))],
                axis=1,
            )
            for actions in chosen
        ]
    )
    production_P = np.array([truth.production[:m] @ lam for lam in scalarization_PM])
    static_P = np.array([truth.static[truth.best_static(lam), :m] @ lam for lam in scalarization_PM])
    best_P = np.array([truth.best(lam)[:m] @ lam for lam in scalarization_PM])
    found = []
    for run_id, value_nP in zip(run_ids, values_RnP, strict=True):
        paired_nP = (value_nP - values_RnP[0]) / production_P
        draws_BP = np.stack([paired_nP[index].mean(axis=0) for index in resample])
        mean_B = draws_BP.mean(axis=1)
        low, high = np.quantile(mean_B, [0.025, 0.975])
        found.append(
            Worth(
                run_id=run_id,
                captured_P=(value_nP.mean(axis=0) - static_P) / (best_P - static_P),
                difference_P=paired_nP.mean(axis=0),
                interval_P2=np.quantile(draws_BP, [0.025, 0.975], axis=0).T,
                mean_difference=(float(paired_nP.mean()), float(low), float(high)),
            )
        )
    return found


def as_markdown(worths: Sequence[Worth], scalarization_PM: FloatArray) -> str:
    """A table, one row per scalarization and run."""
    lines = ["| λ | run | captured | value − first run, % of production |", "|---|---|---|---|"]
    for p, lam in enumerate(scalarization_PM):
        for worth in worths:
            low, high = worth.interval_P2[p]
            lines.append(
                f"| {', '.join(f'{x:.2f}' for x in lam)} | {worth.run_id} | {worth.captured_P[p]:.3f} | "
                f"{worth.difference_P[p]:+.2%} [{low:+.2%}, {high:+.2%}] |"
            )
    for worth in worths:
        mean, low, high = worth.mean_difference
        told = f"{mean:+.2%} [{low:+.2%}, {high:+.2%}]"
        lines.append(f"| mean | {worth.run_id} | {worth.captured_P.mean():.3f} | {told} |")
    return "\n".join(lines) + "\n"
