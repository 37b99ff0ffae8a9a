"""The simulated feed: a seeded world in which the value of every choice is known.

A request comes from a user with traits and a latent session intent (inspire, browse, shop), which the
history reveals and the reference ranker does not see. The ranker is calibrated given user, context and
item: its score is the mean over the user's intents of the true engagement probability,
``h_m(u, c, x) = Σ_s π_s(u, c) p_m(x | u, c, s)``. Utility ``Σ_m w_m h_m`` (Eq. 1) fills the slate;
position bias and satiation act on it; and for clipped rewards (Eq. 3) the expectation is exact::

    E[r_m | request, a] = 1 - Π_j (1 - exam_j ρ^{seen_j} p_m(x_j | u, c, intent, day))

Shape legend: n requests, C candidates, H heads, A actions, W controlled weights, R outcomes (objectives,
then metrics), S intents, K slots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from benchmarks.feed import config as c
from benchmarks.feed import kernels
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.population import make_items, make_users, ranker_constants
from benchmarks.feed.requests import MAX_OLDER, Array, RequestBatch, RequestSource
from triton_models.errors import SimulationError, SurfaceError
from triton_models.files import write_json
from triton_models.surface import Surface, describe_validation_error

WORLD_FILE = "_world.json"
"""Lies beside the logs; readers of logs skip names that start with an underscore."""
WORLD_VERSION = 1


@dataclass(frozen=True)
class _Latents:
    """What the kernels need of every request of a batch."""

    base_nH: Array
    kind_nH: Array
    scale_nH: Array
    ratio_nSH: Array


class World:
    """One seeded world on one control surface. Immutable, cheap to build (about 0.1 s)."""

    def __init__(self, config: WorldConfig, surface: Surface) -> None:
        check_surface(surface)
        self.config = config
        self.surface = surface
        history = surface.state.history
        self.items = make_items(config, history.embedding if history else c.ITEM_TRAITS)
        self.users = make_users(config, surface.state.user_embedding)
        self.ranker = ranker_constants(config.behaviour)
        self.source = RequestSource(
            config=config,
            users=self.users,
            items=self.items,
            prior_constants=(self.ranker.prior_S, self.ranker.tilt_ZS, self.ranker.context_S),
        )
        slots = np.arange(config.k)
        self.examination = ((slots + 1.0) ** -config.behaviour.exam_decay).astype(np.float32)
        self.outcomes = (*surface.objectives, *surface.metrics)
        objectives = [c.EVENTS.index(name) for name in surface.objectives]
        columns = {"successful_session": kernels.HEADS, "hide": kernels.HIDE}
        self._columns = np.array(objectives + [columns[name] for name in surface.metrics])
        self._heads = np.array([c.EVENTS.index(head) for head in surface.heads])
        # Taste, kind and own logits of an item: 64 bytes, one cache line.
        table = [self.items.traits[:, : c.TASTES + 1], self.items.quality_logit]
        self._item_table = np.ascontiguousarray(np.concatenate(table, axis=1), dtype=np.float32)

    # ------------------------------------------------------------------------------------- requests

    def requests(self, first: int, count: int) -> RequestBatch:
        """Requests ``first .. first + count - 1``; from ``config.requests`` on they are after the log.

        Raises:
            SimulationError: a negative number.
        """
        if first < 0 or count < 0:
            raise SimulationError(f"requests are numbered from 0, got first {first} and count {count}")
        return self.source.draw(first, count)

    def redraw(self, batch: RequestBatch, draw: int) -> RequestBatch:
        """The same requests with fresh candidates, number ``draw`` ≥ 1."""
        return batch.with_candidates(self.source.candidates(batch.first, len(batch), draw))

    def logged_actions(self, batch: RequestBatch) -> npt.NDArray[np.int64]:
        """Actions of uniform exploration, [n]."""
        chosen = (batch.action_uniform.astype(np.float64) * self.surface.num_actions).astype(np.int64)
        return np.asarray(chosen)

    # --------------------------------------------------------------------------------------- ranker

    def head_scores(self, batch: RequestBatch) -> Array:
        """Ranker heads in the order of ``surface.heads``, [n, C, H]."""
        return np.asarray(self._scores(batch)[:, self._heads].transpose(0, 2, 1))

    def slates(self, batch: RequestBatch, weights: npt.ArrayLike, k: int | None = None) -> Array:
        """Positions (into the candidates) of the served items, [n, k], best first; weights [W] or [n, W]."""
        weight_nH = self._full_weights(np.atleast_2d(np.asarray(weights, dtype=np.float64)))
        return np.asarray(kernels.slates(self._scores(batch), weight_nH, k or self.config.k))

    # -------------------------------------------------------------------------------------- rewards

    def expected_rewards(
        self,
        batch: RequestBatch,
        actions: npt.ArrayLike | None = None,
        *,
        weights: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float64]:
        """Exact expected outcomes: of actions [n], of weights [W] or [n, W], or of every action.

        Returns:
            [n, R] for actions or weights, [n, A, R] for neither; R counts objectives, then metrics.
        """
        ratio = self._true_ratio(batch)
        if actions is not None:
            weights = self.surface.actions[np.asarray(actions)]
        if weights is None:
            weight_1AH = self._full_weights(self.surface.actions)[None]
            return np.asarray(self._expected(batch, weight_1AH, ratio)[:, :, 0])
        weight_nAH = self._full_weights(np.atleast_2d(np.asarray(weights, dtype=np.float64)))[:, None]
        return np.asarray(self._expected(batch, weight_nAH, ratio)[:, 0, 0])

    def rewards_by_intent(
        self, batch: RequestBatch, *, weights: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.float64]:
        """Expected outcomes if the intent were each of S: of every action, or of weights [W].

        Returns:
            [n, A, S, R]; A = 1 for weights.
        """
        chosen = self.surface.actions if weights is None else np.atleast_2d(np.asarray(weights, np.float64))
        return self._expected(batch, self._full_weights(chosen)[None], self._latents(batch).ratio_nSH)

    def slot_probabilities(self, batch: RequestBatch, slate_nK: Array) -> Array:
        """Chance of each engagement kind (``config.EVENTS``) in each slot of given slates, [n, K, 5]."""
        return np.asarray(
            kernels.slate_probabilities(
                self._scores(batch),
                slate_nK,
                self._topics(batch),
                self._true_ratio(batch)[:, 0],
                self.examination,
                self.config.behaviour.satiation,
            )
        )

    def sample(self, batch: RequestBatch, actions: npt.ArrayLike | None = None) -> tuple[Array, Array]:
        """Engagements of the logged (or the given) actions: counts of each kind, and metrics.

        Returns:
            counts int32 [n, 5] in the order of ``config.EVENTS``; successful session float64 [n].
        """
        chosen = self.logged_actions(batch) if actions is None else np.asarray(actions)
        return self.engage(batch, self.slates(batch, self.surface.actions[chosen]))

    def engage(self, batch: RequestBatch, slate_nK: Array) -> tuple[Array, Array]:
        """Engagements with given slates of ``config.k`` slots, drawn by the requests' own random numbers.

        Returns:
            as :meth:`sample`.
        """
        chance = self.slot_probabilities(batch, slate_nK)
        counts = kernels.count_engagements(chance, self.source.engagement_uniforms(batch.first, len(batch)))
        return counts, _successful(counts)

    def serve(
        self, batch: RequestBatch, vector_VW: npt.NDArray[np.float64], vector_nP: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], Array, Array]:
        """Serve every request by several policies, each with a vector of its own from a table [V, W].

        The same as :meth:`expected_rewards` and :meth:`engage` one policy after the other, at a fraction
        of the cost where policies agree.

        Returns:
            expected outcomes [n, P, R]; counts int32 [n, P, 5]; successful session float64 [n, P].
        """
        values, counts = kernels.serve(
            self._scores(batch),
            self._full_weights(vector_VW),
            vector_nP,
            self._topics(batch),
            self._true_ratio(batch)[:, 0],
            self.examination,
            self.config.behaviour.satiation,
            self.source.engagement_uniforms(batch.first, len(batch)),
        )
        return np.asarray(values[..., self._columns]), counts, _successful(counts)

    def event_columns(self, names: Sequence[str]) -> list[int]:
        """Columns of :meth:`sample`'s counts that hold these engagement kinds."""
        return [c.EVENTS.index(name) for name in names]

    def intent_posterior(self, batch: RequestBatch) -> npt.NDArray[np.float64]:
        """Chance of each intent given all the request shows, [n, S]: Bayes over the session's entries."""
        behaviour = self.config.behaviour
        used = batch.history_used[:, MAX_OLDER:]
        item = batch.history_item[:, MAX_OLDER:]
        rank = np.empty(self.config.items, dtype=np.int64)
        rank[self.items.by_kind] = np.arange(self.config.items)
        product = (rank[item] >= self.items.inspirations).astype(np.int64)
        share = np.array(behaviour.session_product)
        kind_2S = np.log(np.stack([1 - share, share]))
        action_4S = np.log(np.array(behaviour.session_action)).T
        evidence = kind_2S[product] + action_4S[batch.history_action[:, MAX_OLDER:]]
        logit = np.log(batch.prior) + (evidence * used[:, :, None]).sum(axis=1)
        chance = np.exp(logit - logit.max(axis=1, keepdims=True))
        return np.asarray(chance / chance.sum(axis=1, keepdims=True))

    # -------------------------------------------------------------------------------------- private

    def _expected(self, batch: RequestBatch, weight_nAH: Array, ratio_nSH: Array) -> npt.NDArray[np.float64]:
        values = kernels.expected(
            self._scores(batch),
            weight_nAH,
            self._topics(batch),
            np.ascontiguousarray(ratio_nSH),
            self.examination,
            self.config.behaviour.satiation,
            self.config.topics,
        )
        return np.asarray(values[..., self._columns])

    def _full_weights(self, weights: npt.NDArray[np.float64]) -> Array:
        """Controlled weights [..., W] → weights of all engagement kinds [..., 5]; heads not used get 0."""
        full = np.zeros((*weights.shape[:-1], len(c.EVENTS)), dtype=np.float32)
        controlled = weights.shape[-1]
        full[..., self._heads[:controlled]] = weights
        full[..., self._heads[controlled:]] = self.surface.fixed_weights
        return full

    def _scores(self, batch: RequestBatch) -> Array:
        if "scores" not in batch._cache:
            latents = self._latents(batch)
            batch._cache["scores"] = kernels.score(
                np.ascontiguousarray(self.users.traits[batch.user][:, : c.TASTES]),
                latents.base_nH,
                latents.kind_nH,
                latents.scale_nH,
                self.ranker.taste_H,
                batch.candidates,
                self._item_table,
            )
        return batch._cache["scores"]

    def _topics(self, batch: RequestBatch) -> Array:
        if "topics" not in batch._cache:
            batch._cache["topics"] = self.items.topic[batch.candidates]
        return batch._cache["topics"]

    def _true_ratio(self, batch: RequestBatch) -> Array:
        """True probability over ranker score for the request's own intent, [n, 1, H]."""
        return np.asarray(self._latents(batch).ratio_nSH[np.arange(len(batch)), batch.intent][:, None])

    def _latents(self, batch: RequestBatch) -> _Latents:
        r, behaviour = self.ranker, self.config.behaviour
        traits = self.users.traits[batch.user]
        base = r.bias_H + traits @ r.level_ZH
        for f, table in enumerate(r.context_H):
            base += table[batch.context[:, f]]
        spread = np.float32(r.contrast_spread) * traits[:, c.CONTRAST]
        contrast = np.float32(r.contrast_scale) * np.exp(spread)
        multiplier_nSH = np.exp(contrast[:, None, None] * r.intent_HS.T)
        mean_nH = (batch.prior[:, :, None] * multiplier_nSH).sum(axis=1)
        day = np.clip(batch.day, -1.0, 1.0)[:, None]
        drift_nH = 1.0 + day * np.array(behaviour.drift)
        ratio = multiplier_nSH / mean_nH[:, None] * drift_nH[:, None]
        return _Latents(
            base_nH=base.astype(np.float32),
            kind_nH=(contrast[:, None] * r.kind_H).astype(np.float32),
            scale_nH=(r.ceiling_H * mean_nH).astype(np.float32),
            ratio_nSH=ratio.astype(np.float32),
        )


def _successful(counts: Array) -> Array:
    """Sessions with an engagement that counts and without a hide, [..., 5] → float64 [...]."""
    engaged = counts[..., [kernels.REPIN, kernels.P2P, kernels.CLICK]].sum(axis=-1) > 0
    return np.asarray((engaged & (counts[..., kernels.HIDE] == 0)).astype(np.float64))


# ------------------------------------------------------------------------------------------- checks


def check_surface(surface: Surface) -> None:
    """Refuse a surface that the simulated feed cannot fill.

    Raises:
        SimulationError: naming every field that does not fit.
    """
    problems = []
    for what, names, known in (
        ("heads", surface.heads, c.EVENTS),
        ("objectives", surface.objectives, c.EVENTS),
        ("metrics", surface.metrics, c.METRICS),
        ("cohorts", surface.cohorts, c.COHORTS),
    ):
        strange = [name for name in names if name not in known]
        if strange:
            problems.append(f"{what} {', '.join(strange)} (the feed has {', '.join(known)})")
    state = surface.state
    if state.user_embedding < c.USER_TRAITS:
        problems.append(f"user_embedding {state.user_embedding} (at least {c.USER_TRAITS})")
    if state.history is not None:
        if state.history.embedding < c.ITEM_TRAITS:
            problems.append(f"history embedding {state.history.embedding} (at least {c.ITEM_TRAITS})")
        strange = [name for name in state.history.actions if name not in c.ACTIONS]
        if strange:
            problems.append(f"history actions {', '.join(strange)} (the feed has {', '.join(c.ACTIONS)})")
    for name, words in c.CONTEXT.items():
        if sorted(state.context.get(name, ())) != sorted(words):
            problems.append(f"context {name} (must have the values {', '.join(words)})")
    problems += [f"context {name} (not in the feed)" for name in state.context if name not in c.CONTEXT]
    if problems:
        raise SimulationError(f"the simulated feed cannot fill this surface: {'; '.join(problems)}")


# ---------------------------------------------------------------------------------------- the file


def save_world(world: World, folder: str | Path) -> None:
    """Write what :func:`load_world` needs to build the same world again."""
    data = {
        "version": WORLD_VERSION,
        "config": world.config.model_dump(mode="json"),
        "surface": world.surface.to_dict(),
        "surface_fingerprint": world.surface.fingerprint,
    }
    write_json(Path(folder) / WORLD_FILE, data)


def load_world(logs: str | Path) -> World:
    """The world that simulated a folder of logs.

    Raises:
        SimulationError: the folder has no world file, or a damaged one.
    """
    path = Path(logs) / WORLD_FILE
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != WORLD_VERSION:
            found = data["version"]
            raise SimulationError(f"{path}: version {found}, expected {WORLD_VERSION}; simulate again")
        config = WorldConfig.model_validate(data["config"])
        surface = Surface.from_dict(data["surface"], source=str(path))
    except FileNotFoundError as error:
        raise SimulationError(f"{path} is missing; are these logs of the simulated feed?") from error
    except ValidationError as error:
        raise SimulationError(f"{path}: {describe_validation_error(error)}") from error
    except (OSError, ValueError, KeyError, TypeError, SurfaceError) as error:
        raise SimulationError(f"{path}: not a world file ({error})") from error
    return World(config, surface)
