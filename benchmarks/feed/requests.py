"""Requests of the simulated feed, each a pure function of (seed, request number).

Requests come in blocks of :data:`BLOCK`. A block's random numbers are those of a Philox generator keyed
by (seed, stream, block number), so a request is the same whoever draws it, in whatever order or company.

Shape legend: n requests, L history slots, C candidates, D user embedding, N history length, E item
embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed import config as c
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.population import Items, Users
from triton_models.encoding import action_codes, context_codes
from triton_models.surface import Surface

Array = npt.NDArray[Any]

BLOCK = 256
"""Requests per generator; a constant of the world, not of the machine."""
STATE_STREAM, ENGAGEMENT_STREAM, CANDIDATES_STREAM = 0, 1, 2
"""Streams of random numbers; redraws of the candidates are numbered from CANDIDATES_STREAM on."""
MAX_SESSION, MAX_OLDER = 12, 14
SESSION_S = 1800.0
"""Every history entry of the session is younger than this, every other one older than three hours."""
OLDEST_S, NEWEST_OLDER_S = 14 * 86_400.0, 3 * 3600.0
SWITCH_DEVICE = 0.1

_SCALARS = 9
_COLUMNS = _SCALARS + 4 * (MAX_SESSION + MAX_OLDER)
_USER, _JITTER, _PLACE, _SWITCH, _DEVICE, _INTENT, _ACTION, _SESSION, _OLDER = range(_SCALARS)


@dataclass(frozen=True, kw_only=True)
class RequestBatch:
    """Requests, what they show, and (``intent``, ``action_uniform``) what nobody sees."""

    first: int
    seed: int
    users: Users = field(repr=False)
    items: Items = field(repr=False)
    user: Array
    """[n] user numbers."""
    timestamp: Array
    """[n] datetime64[us], UTC, strictly increasing with the request number."""
    context: Array
    """[n, 3] int8, indices into the vocabularies of config.CONTEXT."""
    day: Array
    """[n] position in the logged days: -1 at their begin, 1 at their end, more after it."""
    intent: Array
    """[n] int8, latent: index into INTENTS."""
    prior: Array
    """[n, S] chance of each intent, given user and context."""
    history_item: Array
    """[n, L] item numbers, oldest first."""
    history_action: Array
    """[n, L] int8, indices into ACTIONS."""
    history_age_s: Array
    """[n, L] float32."""
    history_used: Array
    """[n, L] bool: which of the L slots hold an entry."""
    candidates: Array
    """[n, C] int32 item ids, all different."""
    action_uniform: Array
    """[n] float32 in [0, 1): draws the logged action."""
    _cache: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def index(self) -> Array:
        """Request numbers, [n] int64."""
        return np.arange(self.first, self.first + len(self))

    @property
    def request_id(self) -> Array:
        """[n] object; the order of the ids is the order of time."""
        return np.array([f"r{self.seed}-{i:012d}" for i in self.index.tolist()], dtype=object)

    @property
    def user_id(self) -> Array:
        """[n] object."""
        return np.array([f"u{u:07d}" for u in self.user.tolist()], dtype=object)

    @property
    def cohort(self) -> Array:
        """[n] object: names of COHORTS."""
        return np.asarray(np.array(c.COHORTS, dtype=object)[self.users.cohort[self.user]])

    @property
    def user_embedding(self) -> Array:
        """[n, D] float32."""
        return np.asarray(self.users.embedding[self.user])

    def state(self, row: int) -> dict[str, Any]:
        """One request state as JSON-able data, in the shape that ``encode_state`` reads."""
        used = self.history_used[row]
        return {
            "user_embedding": self.user_embedding_of(row).tolist(),
            "history": {
                "embedding": self.items.embedding[self.history_item[row, used]].tolist(),
                "action": [c.ACTIONS[a] for a in self.history_action[row, used]],
                "age_s": self.history_age_s[row, used].tolist(),
            },
            "context": {
                name: words[self.context[row, f]] for f, (name, words) in enumerate(c.CONTEXT.items())
            },
        }

    def user_embedding_of(self, row: int) -> Array:
        """User embedding of one request, [D]."""
        return np.asarray(self.users.embedding[self.user[row]])

    def state_tensors(self, surface: Surface) -> dict[str, Array]:
        """All states, encoded like :func:`triton_models.encoding.encode_state`, batch first."""
        tensors: dict[str, Array] = {"user_embedding": self.user_embedding}
        if surface.state.history is not None:
            tensors.update(self._history_tensors(surface))
        if surface.state.context:
            columns = []
            for name, words in surface.state.context.items():
                known = context_codes(words)
                code = np.array([known.get(word, 0) for word in c.CONTEXT[name]], dtype=np.int64)
                columns.append(code[self.context[:, list(c.CONTEXT).index(name)]])
            tensors["context"] = np.stack(columns, axis=1)
        return tensors

    def _history_tensors(self, surface: Surface) -> dict[str, Array]:
        spec = surface.state.history
        if spec is None:  # the caller has looked
            return {}
        known = action_codes(spec)
        code_nL = np.array([known.get(name, 0) for name in c.ACTIONS], dtype=np.int64)[self.history_action]
        used = self.history_used & (code_nL > 0)
        later = used[:, ::-1].cumsum(axis=1)[:, ::-1]
        used &= later <= spec.length
        row, slot = np.nonzero(used)
        place = (used.cumsum(axis=1) - 1)[row, slot]
        embedding = np.zeros((len(self), spec.length, spec.embedding), dtype=np.float32)
        action = np.zeros((len(self), spec.length), dtype=np.int64)
        age_s = np.zeros((len(self), spec.length), dtype=np.float32)
        embedding[row, place] = self.items.embedding[self.history_item[row, slot]]
        action[row, place] = code_nL[row, slot]
        age_s[row, place] = self.history_age_s[row, slot]
        return {"history_embedding": embedding, "history_action": action, "history_age_s": age_s}

    def with_candidates(self, candidates: Array) -> RequestBatch:
        """The same requests with other candidates [n, C]."""
        return replace(self, candidates=candidates, _cache={})


@dataclass(frozen=True, kw_only=True)
class RequestSource:
    """Draws requests of one world."""

    config: WorldConfig
    users: Users
    items: Items
    prior_constants: tuple[Array, Array, tuple[Array, ...]]
    """Prior [S], tilt [Z, S] and context tables [words, S] of the intent."""

    def draw(self, first: int, count: int) -> RequestBatch:
        """Requests ``first .. first + count - 1``."""
        uniform = blockwise(self.config.seed, STATE_STREAM, first, count, _COLUMNS)
        scalar = uniform[:, :_SCALARS].T
        user = np.searchsorted(self.users.traffic, scalar[_USER].astype(np.float64))
        user = np.minimum(user, self.config.users - 1)
        timestamp, day = self._time(np.arange(first, first + count), scalar[_JITTER])
        context = self._context(scalar, user, timestamp)
        prior = self.prior(user, context)
        # float32 sums may stop short of one
        intent = np.minimum(_choose(prior.cumsum(axis=1), scalar[_INTENT]), len(c.INTENTS) - 1)
        return RequestBatch(
            first=first,
            seed=self.config.seed,
            users=self.users,
            items=self.items,
            user=user,
            timestamp=timestamp,
            context=context,
            day=day,
            intent=intent.astype(np.int8),
            prior=prior,
            candidates=self.candidates(first, count, 0),
            action_uniform=scalar[_ACTION],
            **self._history(uniform[:, _SCALARS:], scalar, user, intent),
        )

    def candidates(self, first: int, count: int, draw: int) -> Array:
        """Draw number ``draw`` of the candidates, [n, C] int32: one item from each of C strata."""
        config = self.config
        size = config.items // config.candidates
        stream = CANDIDATES_STREAM + draw
        uniform = blockwise(config.seed, stream, first, count, config.candidates)
        picked = (uniform * np.float32(size)).astype(np.int32)
        picked *= config.candidates
        picked += np.arange(config.candidates, dtype=np.int32)
        return np.asarray(picked)

    def engagement_uniforms(self, first: int, count: int) -> Array:
        """[n, K, H] float32 in [0, 1): draw the engagements of the logged slates."""
        shape = (count, self.config.k, len(c.EVENTS))
        flat = blockwise(self.config.seed, ENGAGEMENT_STREAM, first, count, shape[1] * shape[2])
        return np.asarray(flat.reshape(shape))

    def prior(self, user: Array, context: Array) -> Array:
        """Chance of each intent given user and context, [n, S]: the softmax of what both add up to."""
        prior_S, tilt_ZS, tables = self.prior_constants
        logit = prior_S + self.users.traits[user] @ tilt_ZS
        for f, table in enumerate(tables):
            logit += table[context[:, f]]
        chance = np.exp(logit - logit.max(axis=1, keepdims=True))
        return np.asarray(chance / chance.sum(axis=1, keepdims=True))

    def _time(self, index: Array, jitter: Array) -> tuple[Array, Array]:
        config = self.config
        step_us = config.days * 86_400e6 / config.requests
        # In float64 microseconds of 2^53 are exact; jitter < 1 keeps the order of the request numbers.
        offset_us = ((index + 0.999 * jitter.astype(np.float64)) * step_us).astype(np.int64)
        start = np.datetime64(config.start.replace(tzinfo=None), "us")
        return start + offset_us.astype("timedelta64[us]"), 2.0 * index / config.requests - 1.0

    def _context(self, scalar: Array, user: Array, timestamp: Array) -> Array:
        hour = timestamp.astype("datetime64[h]").astype(np.int64) % 24 + self.users.zone_h[user]
        device = np.where(
            scalar[_SWITCH] < SWITCH_DEVICE, (scalar[_DEVICE] * 4).astype(np.int8), self.users.device[user]
        )
        place = np.searchsorted([0.7, 0.85], scalar[_PLACE], side="right")
        return np.asarray(np.stack([device, place, hour % 24 // 6], axis=1), dtype=np.int8)

    def _history(self, uniform: Array, scalar: Array, user: Array, intent: Array) -> dict[str, Any]:
        behaviour = self.config.behaviour
        split = 4 * MAX_OLDER
        tilt = self.users.traits[user, c.TILT]
        older_share = np.clip(0.5 + 0.15 * tilt, 0.1, 0.9)
        session_share = np.array(behaviour.session_product, np.float32)[intent]
        actions = np.array(behaviour.session_action, np.float32)
        usual = np.broadcast_to(actions.mean(axis=0), (len(user), len(c.ACTIONS)))
        older = self._entries(uniform[:, :split], older_share, usual)
        session = self._entries(uniform[:, split:], session_share, actions[intent])
        older_age = NEWEST_OLDER_S * np.exp(older[2] * math.log(OLDEST_S / NEWEST_OLDER_S))
        session_age = session[2] * SESSION_S
        lengths = (
            _poisson(behaviour.older_length, MAX_OLDER, scalar[_OLDER]),
            _poisson(behaviour.session_length, MAX_SESSION, scalar[_SESSION]),
        )
        sizes = (MAX_OLDER, MAX_SESSION)
        used = [np.arange(size) >= size - n[:, None] for size, n in zip(sizes, lengths, strict=True)]
        return {
            "history_item": np.concatenate([older[0], session[0]], axis=1),
            "history_action": np.concatenate([older[1], session[1]], axis=1),
            "history_age_s": np.concatenate([older_age, session_age], axis=1).astype(np.float32),
            "history_used": np.concatenate(used, axis=1),
        }

    def _entries(
        self, uniform: Array, product_share: Array, action_chance: Array
    ) -> tuple[Array, Array, Array]:
        """Items, action types and sorted uniforms for the ages (oldest first) of one part of a history."""
        size = uniform.shape[1] // 4
        kind, item, action, age = (uniform[:, i * size : (i + 1) * size] for i in range(4))
        product = kind < product_share[:, None]
        inspirations = self.items.inspirations
        products = self.config.items - inspirations
        place = np.where(product, inspirations + (item * products).astype(np.int32), item * inspirations)
        bound = action_chance.cumsum(axis=1)[:, :-1]
        code = sum((action >= bound[:, a, None]).astype(np.int8) for a in range(bound.shape[1]))
        return self.items.by_kind[place.astype(np.int32)], np.asarray(code), -np.sort(-age, axis=1)


def blockwise(seed: int, stream: int, first: int, count: int, columns: int) -> Array:
    """Uniform float32 numbers of requests ``first ..``, [count, columns], the same in any partition."""
    if count <= 0:
        return np.zeros((0, columns), dtype=np.float32)
    begin, end = first // BLOCK, (first + count - 1) // BLOCK
    parts = np.empty(((end - begin + 1) * BLOCK, columns), dtype=np.float32)
    for row, block in enumerate(range(begin, end + 1)):
        generator = np.random.Generator(np.random.Philox(key=[seed, (stream << 40) | block]))
        generator.random(dtype=np.float32, out=parts[row * BLOCK : (row + 1) * BLOCK])
    return parts[first - begin * BLOCK : first - begin * BLOCK + count]


def _choose(cumulative: Array, uniform: Array) -> Array:
    return np.asarray((uniform[:, None] >= cumulative).sum(axis=1))


def _poisson(mean: float, maximum: int, uniform: Array) -> Array:
    """Poisson numbers, cut off at ``maximum``, by inversion."""
    chance = [math.exp(-mean) * mean**i / math.factorial(i) for i in range(maximum)]
    return np.searchsorted(np.cumsum(chance), uniform, side="right")
