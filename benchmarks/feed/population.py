"""The users and the items of a world, drawn once from its seed.

Shape legend: U users, I items, H engagement kinds, S intents, D user embedding, E item embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed import config as c
from benchmarks.feed.config import Behaviour, WorldConfig

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[Any]

COHORT_DAYS = 28
"""The paper's cohorts look at 28 days: CORE saved on at least 4, CASUAL was active on at least 4."""
COHORT_MINIMUM_DAYS = 4
USERS_STREAM, ITEMS_STREAM, ROTATIONS_STREAM = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Items:
    """The pool of items."""

    traits: FloatArray
    """[I, ITEM_TRAITS]."""
    topic: IntArray
    """[I] int32."""
    quality_logit: FloatArray
    """[I, H]: what the item adds to each logit, whoever sees it."""
    embedding: FloatArray
    """[I, E]: the traits, rotated; what a history shows of an item."""
    by_kind: IntArray
    """[I] item ids, inspirations first."""
    inspirations: int
    """How many of ``by_kind`` are inspirations."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users. The embedding carries every trait, so the ranker knows all but the session's intent."""

    traits: FloatArray
    """[U, USER_TRAITS]."""
    embedding: FloatArray
    """[U, D]: the traits and, where D is larger, noise; rotated."""
    rotation: FloatArray
    """[D, D], orthogonal: embedding = (traits, noise) @ rotation."""
    cohort: IntArray
    """[U] int8, index into COHORTS."""
    traffic: npt.NDArray[np.float64]
    """[U], cumulative share of requests."""
    device: IntArray
    """[U] int8, the user's usual device."""
    zone_h: IntArray
    """[U], offset from UTC in hours."""


def make_items(config: WorldConfig, embedding: int) -> Items:
    """Draw the pool. Topics lie on a sphere of taste; products and inspirations share them."""
    rng = np.random.default_rng([config.seed, ITEMS_STREAM])
    behaviour, count = config.behaviour, config.items
    centre = _unit(rng.normal(size=(config.topics, c.TASTES)))
    topic = rng.integers(config.topics, size=count)
    taste = _unit(centre[topic] + 0.25 * rng.normal(size=(count, c.TASTES)))
    product = rng.random(count) < behaviour.product_share
    kind = np.where(product, 1.0, -1.0) + 0.3 * rng.normal(size=count)
    quality = rng.normal(size=count)
    traits = np.column_stack([taste, kind, quality]).astype(np.float32)
    padded = np.concatenate([traits, np.zeros((count, embedding - c.ITEM_TRAITS))], axis=1)
    padded[:, : c.TASTES] *= np.sqrt(c.TASTES)  # unit variance, like the other traits
    own = 0.15 * rng.normal(size=(count, len(c.EVENTS)))
    return Items(
        traits=traits,
        topic=topic.astype(np.int32),
        quality_logit=(quality[:, None] * np.array(behaviour.quality) + own).astype(np.float32),
        embedding=(padded @ _rotation(config.seed, 1, embedding)).astype(np.float32),
        by_kind=np.argsort(product, kind="stable").astype(np.int32),
        inspirations=int(count - product.sum()),
    )


def make_users(config: WorldConfig, embedding: int) -> Users:
    """Draw the users, and 28 days of their activity, which sets the cohort."""
    rng = np.random.default_rng([config.seed, USERS_STREAM])
    behaviour, count = config.behaviour, config.users
    active_chance = rng.beta(0.8, 1.5, size=count)
    save_chance = rng.beta(0.7, 2.0, size=count)
    active_days = rng.binomial(COHORT_DAYS, active_chance)
    saved_days = rng.binomial(active_days, save_chance)
    core = saved_days >= COHORT_MINIMUM_DAYS
    cohort = np.where(core, 0, np.where(active_days >= COHORT_MINIMUM_DAYS, 1, 2))
    traits = rng.normal(size=(count, c.USER_TRAITS))
    traits[:, : c.TASTES] = np.sqrt(c.TASTES) * _unit(traits[:, : c.TASTES])
    traits[:, c.SAVE_LEVEL] = 0.8 * _standard(save_chance) + 0.6 * traits[:, c.SAVE_LEVEL]
    traits[:, c.CONTRAST] *= 0.4
    traits[:, c.CONTRAST] += np.array(behaviour.contrast_by_cohort)[cohort]
    traits[:, c.ACTIVITY] = _standard(active_chance)
    np.clip(traits, -4.0, 4.0, out=traits)
    rotation = _rotation(config.seed, 0, embedding)
    padded = np.concatenate([traits, rng.normal(size=(count, embedding - c.USER_TRAITS))], axis=1)
    visits = active_chance + 0.03
    return Users(
        traits=traits.astype(np.float32),
        embedding=(padded @ rotation).astype(np.float32),
        rotation=rotation.astype(np.float32),
        cohort=cohort.astype(np.int8),
        traffic=np.cumsum(visits) / visits.sum(),
        device=rng.choice(4, size=count, p=[0.4, 0.35, 0.07, 0.18]).astype(np.int8),
        zone_h=rng.choice([-8, -6, -5, 0, 1, 2], size=count).astype(np.int8),
    )


# --------------------------------------------------------------------- what a ranker knows of a request


@dataclass(frozen=True, kw_only=True)
class RankerConstants:
    """Constants of the reference ranker, from which both NumPy and the exported graph compute.

    For user traits z, context codes c (from 0) and item (t, κ, q)::

        logit_h = bias_h + z·level_h + Σ_f context_h[c_f] + taste_h √D_t⁻¹ (z_taste·t) + τ kind_h κ + q_h
        τ       = contrast_scale · exp(contrast_spread · z_contrast)
        π       = softmax(prior + z·tilt + Σ_f context_prior[c_f])
        score_h = ceiling_h · σ(logit_h) · Σ_s π_s exp(τ intent_hs)
    """

    bias_H: FloatArray
    level_ZH: FloatArray
    context_H: tuple[FloatArray, ...]
    taste_H: FloatArray
    kind_H: FloatArray
    ceiling_H: FloatArray
    intent_HS: FloatArray
    prior_S: FloatArray
    tilt_ZS: FloatArray
    context_S: tuple[FloatArray, ...]
    contrast_scale: float
    contrast_spread: float


def ranker_constants(behaviour: Behaviour) -> RankerConstants:
    """The ranker of a world: everything that behaviour depends on, but the session's intent and the day."""
    level = np.zeros((c.USER_TRAITS, len(c.EVENTS)))
    for event, trait in enumerate((c.SAVE_LEVEL, c.PRODUCT_LEVEL, c.ACTIVITY, c.ACTIVITY, c.FUSSINESS)):
        level[trait, event] = behaviour.level[event]
    tilt = np.zeros((c.USER_TRAITS, len(c.INTENTS)))
    tilt[c.TILT] = (-0.5, 0.0, 0.5)
    device = 0.1 * np.array([[0, 0, 0, 0, 0], [-1, 1, 0, 0, 1], [2, -1, 0, 1, 0], [-1, 2, 1, 0, 0]])
    place = 0.1 * np.array([[0, 0, 0, 0, 0], [1, -1, 1, 0, -2], [2, 0, 0, 1, 0]])
    part = 0.05 * np.array([[1, -1, 0, 0, 0], [0, 0, -1, -1, 0], [-1, 1, 0, 0, 0], [0, 0, 1, 1, 0]])
    place_prior = np.array([[0, 0, 0], [0, 0.3, 0], [0.5, 0, 0]])
    part_prior = np.array([[0.2, 0, -0.2], [0, 0.2, 0], [-0.1, 0.2, 0.1], [0, 0, 0.2]])
    f32 = np.float32
    return RankerConstants(
        bias_H=np.array(behaviour.bias, f32),
        level_ZH=level.astype(f32),
        context_H=(device.astype(f32), place.astype(f32), part.astype(f32)),
        taste_H=np.array(behaviour.taste, f32),
        kind_H=np.array(behaviour.kind, f32),
        ceiling_H=np.array(behaviour.ceiling, f32),
        intent_HS=np.array(behaviour.intent, f32),
        prior_S=np.array((0.0, 0.0, -0.1), f32),
        tilt_ZS=tilt.astype(f32),
        context_S=(np.zeros((4, 3), f32), place_prior.astype(f32), part_prior.astype(f32)),
        contrast_scale=behaviour.contrast_scale,
        contrast_spread=behaviour.contrast_spread,
    )


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _standard(chance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logit = np.log(np.clip(chance, 0.01, 0.99) / (1 - np.clip(chance, 0.01, 0.99)))
    return np.asarray((logit - logit.mean()) / logit.std())


def _rotation(seed: int, which: int, size: int) -> npt.NDArray[np.float64]:
    """A random orthogonal matrix: no axis of an embedding means anything by itself."""
    rng = np.random.default_rng([seed, ROTATIONS_STREAM, which])
    return np.asarray(np.linalg.qr(rng.normal(size=(size, size)))[0])
