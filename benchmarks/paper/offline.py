"""Hold-out logs → the product's frontier: estimators, intervals and candidates are those of ``sweep``.

Shape legend: n rows of a slice, N rows, P scalarizations, R outcomes, F features.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.feed.world import World
from benchmarks.paper.logged import SLICE, cohort_codes, outcomes
from benchmarks.paper.settings import PaperSettings
from ray_train.estimators import LoggedRows
from ray_train.estimators_basis import polynomial_basis
from ray_train.estimators_features import row_features
from ray_train.scoring import score_states
from ray_train.sweep import ScoredRows, build_frontier
from triton_models.frontier import Frontier, RunReference, Window
from triton_models.network import ValueNetwork


def scored_rows(world: World, network: ValueNetwork, settings: PaperSettings) -> ScoredRows:
    """The hold-out, sorted by user, with the action of every scalarization's policy."""
    surface = world.surface
    scalarization_PM = settings.sweep.scalarizations(surface)
    basis, cpu = polynomial_basis(surface), torch.device("cpu")
    users, actions, rewards, features, chosen, cohorts = [], [], [], [], [], []
    for first in range(settings.train_rows, settings.requests, SLICE):
        batch = world.requests(first, min(SLICE, settings.requests - first))
        state = batch.state_tensors(surface)
        action = world.logged_actions(batch)
        chosen_nP, coefficient_nX = score_states(surface, network, state, scalarization_PM, cpu, basis)
        users.append(batch.user.astype(np.int32))
        actions.append(action.astype(np.int16))
        rewards.append(outcomes(world, *world.sample(batch, action)))
        features.append(row_features(surface, coefficient_nX, state).astype(np.float16))
        chosen.append(chosen_nP)
        cohorts.append(cohort_codes(world, batch))
    user_N = np.concatenate(users)
    order = np.argsort(user_N, kind="stable")
    rows = LoggedRows(
        user_N=user_N[order],
        action_N=np.concatenate(actions)[order],
        propensity_N=np.full(len(order), 1.0 / surface.num_actions),
        outcome_NR=np.concatenate(rewards)[order],
        feature_NF=np.concatenate(features)[order],
    )
    return ScoredRows(
        rows=rows,
        chosen_NP=np.concatenate(chosen)[order],
        cohort_N=np.concatenate(cohorts)[order],
        cohorts=surface.cohorts,
    )


def frontier_of(world: World, network: ValueNetwork, settings: PaperSettings) -> Frontier:
    """The frontier that ``sweep`` would have written for this network and hold-out."""
    scored = scored_rows(world, network, settings)
    config = world.config
    start = config.start + (config.end - config.start) * settings.train_rows / settings.requests
    return build_frontier(
        surface=world.surface,
        run=RunReference(
            run_id=f"paper-{config.seed}",
            surface_fingerprint=world.surface.fingerprint,
            code_version="in process",
        ),
        window=Window(
            start=start.isoformat(),
            end=config.end.isoformat(),
            split="holdout",
            rows=len(scored.rows),
            logs=f"simulated feed, seed {config.seed}",
        ),
        scored=scored,
        settings=settings.sweep,
    )
