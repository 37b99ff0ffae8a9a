"""What a sweep costs beside the scoring pass that it needs anyhow (P7).

The network runs once per row, however many operating points: what they add is an argmax each, the features of
the model of the reward, and the valuing. Everything in processor time of one thread: medians of turns in
which the contestants take alternate places.

Shape legend: N rows, A actions, P points, R outcomes.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.feed.config import WorldConfig
from benchmarks.feed.world import World
from ray_train.estimators import LoggedRows
from ray_train.estimators_basis import polynomial_basis
from ray_train.estimators_features import feature_width, row_features
from ray_train.pareto import lattice
from ray_train.sweep import ScoredRows, build_frontier
from ray_train.sweep_settings import SweepSettings
from triton_models.frontier import RunReference, Window
from triton_models.surface import Surface
from triton_models.tensors import state_specs

STATES = 4096


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Microseconds per row of one scoring pass."""

    one_us: float
    """One operating point."""
    many_us: float
    """All of them."""
    features_us: float
    """All of them, and the features of a model of the reward."""


@dataclass(frozen=True, kw_only=True)
class Valuing:
    """What valuing a whole sweep costs."""

    us_per_row: float
    needs_features: bool
    peak_gb: float
    """Most memory that the process ever held, its rows included."""


def measure_scoring(surface: Surface, points: int, turns: int) -> Scoring:
    """Score simulated states with an unfitted network of the paper's sizes."""
    import torch

    from ray_train.scoring import score_states
    from triton_models.network import ValueNetwork
    from triton_models.network_config import NetworkConfig

    torch.set_num_threads(1)
    network = ValueNetwork(surface, NetworkConfig()).eval()
    batch = World(WorldConfig(seed=1, requests=STATES), surface).requests(0, STATES)
    state = batch.state_tensors(surface)
    arrays = {s.name: np.ascontiguousarray(state[s.name], dtype=s.dtype) for s in state_specs(surface)}
    scalarization_PM = lattice(len(surface.objectives), points)
    basis, cpu = polynomial_basis(surface), torch.device("cpu")

    def one() -> None:
        score_states(surface, network, arrays, scalarization_PM[:1], cpu, None)

    def many() -> None:
        score_states(surface, network, arrays, scalarization_PM, cpu, None)

    def features() -> None:
        _, coefficient_nX = score_states(surface, network, arrays, scalarization_PM, cpu, basis)
        row_features(surface, coefficient_nX, arrays)

    spent: list[list[float]] = [[], [], []]
    one()  # warm-up
    for turn in range(turns):
        for place in range(3):
            contestant = (turn + place) % 3
            spent[contestant].append(_processor_us((one, many, features)[contestant]) / STATES)
    return Scoring(one_us=median(spent[0]), many_us=median(spent[1]), features_us=median(spent[2]))


def measure_valuing(surface: Surface, estimator: str, rows: int, users: int, points: int) -> Valuing:
    """Value random choices on random rows: the work does not depend on what they say."""
    settings = SweepSettings(estimator=estimator, points=points)
    scored = _random_rows(surface, rows, users, len(settings.scalarizations(surface)))
    run = RunReference(run_id="none", surface_fingerprint=surface.fingerprint, code_version="none")
    window = Window(start="2026-01-01", end="2026-01-08", split="all", rows=rows, logs="none")
    spent_us = _processor_us(
        lambda: build_frontier(surface=surface, run=run, window=window, scored=scored, settings=settings)
    )
    return Valuing(
        us_per_row=spent_us / rows,
        needs_features=settings.needs_features,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )


def _random_rows(surface: Surface, rows: int, users: int, points: int) -> ScoredRows:
    rng, size = np.random.default_rng(0), surface.num_actions
    outcomes = len(surface.objectives) + len(surface.metrics)
    logged = LoggedRows(
        user_N=np.sort(rng.integers(users, size=rows)).astype(np.int32),
        action_N=rng.integers(size, size=rows).astype(np.int16),
        propensity_N=np.full(rows, 1.0 / size),
        outcome_NR=(rng.random((rows, outcomes)) < 0.3).astype(np.float32),
        feature_NF=rng.random((rows, feature_width(surface)), dtype=np.float32).astype(np.float16),
    )
    return ScoredRows(
        rows=logged,
        chosen_NP=rng.integers(size, size=(rows, points)).astype(np.int16),
        cohort_N=np.full(rows, -1, dtype=np.int16),
        cohorts=(),
    )


def _processor_us(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1e6
