"""What the simulated feed is made of: sizes, and the constants of its behaviour.

Every engagement kind has one row of constants, in the order of :data:`EVENTS`; the session's intents
are the columns, in the order of :data:`INTENTS`. The constants were calibrated so that the world has
the shape the paper reports (``tests/unit/benchmarks/test_feed_shape.py`` holds it there).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

EVENTS = ("repin", "p2p", "click", "closeup", "hide")
"""Engagement kinds; the reference ranker has one head for each."""
METRICS = ("successful_session", "hide")
INTENTS = ("inspire", "browse", "shop")
COHORTS = ("core", "casual", "rest")
ACTIONS = ("save", "related", "click", "hide")
"""Action types of the history."""
CONTEXT = {
    "device": ("iphone", "android", "ipad", "web"),
    "surface": ("feed", "following", "board"),
    "daypart": ("night", "morning", "noon", "evening"),
}

TASTES = 10
"""Dimensions of taste, shared by users and items."""
USER_TRAITS = TASTES + 6
"""Taste, then save level, product level, contrast, intent tilt, activity, fussiness."""
ITEM_TRAITS = TASTES + 2
"""Taste, then kind (inspiration about -1, product about +1) and quality."""
SAVE_LEVEL, PRODUCT_LEVEL, CONTRAST, TILT, ACTIVITY, FUSSINESS = range(TASTES, USER_TRAITS)

Row = tuple[float, float, float, float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Behaviour(_Frozen):
    """Constants of behaviour; per event in the order repin, p2p, click, closeup, hide."""

    ceiling: Row = (0.30, 0.50, 0.40, 0.50, 0.04)
    """Highest probability of an engagement before intent: ``p = ceiling · σ(logit)``."""
    bias: Row = (-5.4, -4.05, -4.7, -4.6, -2.4)
    """Logit of an average item for an average user."""
    taste: Row = (1.0, 0.8, 0.7, 0.6, -0.7)
    """Effect of the match of user taste and item taste (variance 1)."""
    kind: Row = (-1.2, 1.3, 0.4, 0.2, 0.1)
    """Effect of the item's kind, times the user's contrast τ."""
    quality: Row = (0.4, 0.4, 0.3, 0.3, -0.3)
    """Effect of the item's quality (variance 1)."""
    level: Row = (0.6, 0.3, 0.2, 0.2, 0.3)
    """Effect of the user trait that belongs to the event."""
    intent: tuple[tuple[float, float, float], ...] = (
        (0.45, 0.0, -1.1),
        (-1.5, 0.0, 0.55),
        (-0.3, 0.0, 0.3),
        (0.1, 0.0, 0.1),
        (0.0, 0.1, 0.0),
    )
    """Log multiplier of the probability by intent, times the user's contrast τ. The ranker is blind to it."""
    drift: Row = (-0.03, 0.04, 0.0, 0.0, 0.02)
    """Relative change from the middle of the logged days to their end; the ranker is blind to it."""
    contrast_scale: Annotated[float, Field(gt=0)] = 0.8
    contrast_spread: Annotated[float, Field(ge=0)] = 0.55
    """τ = contrast_scale · exp(contrast_spread · contrast trait)."""
    contrast_by_cohort: tuple[float, float, float] = (-2.0, 1.0, -1.7)
    """Mean contrast trait of CORE, CASUAL, REST: habit makes users predictable."""
    product_share: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of products in the pool."""
    session_product: tuple[float, float, float] = (0.12, 0.5, 0.88)
    """Share of products among the session's history entries, by intent."""
    session_action: tuple[tuple[float, float, float, float], ...] = (
        (0.50, 0.30, 0.17, 0.03),
        (0.25, 0.35, 0.35, 0.05),
        (0.08, 0.27, 0.60, 0.05),
    )
    """Action types of the session's history entries, by intent."""
    session_length: Annotated[float, Field(gt=0)] = 5.0
    older_length: Annotated[float, Field(gt=0)] = 5.0
    """Mean numbers of history entries of this session, and of earlier ones."""
    exam_decay: Annotated[float, Field(ge=0)] = 0.45
    """Slot j (from 0) is examined with probability (j + 1)^-exam_decay: position bias."""
    satiation: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Engagement falls by this factor with every earlier slot of the same topic."""


class WorldConfig(_Frozen):
    """A seeded world. Equal configurations make equal worlds, on any machine count."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    requests: Annotated[int, Field(ge=1, lt=2**40)] = 300_000
    """Logged requests; later request numbers are traffic after the last logged day."""
    days: Annotated[float, Field(gt=0, le=3650)] = 21.0
    """Days over which the logged requests are spread."""
    end: datetime = datetime(2026, 1, 22, tzinfo=UTC)
    """End of the last logged day."""
    candidates: Annotated[int, Field(ge=2, le=5000)] = 240
    """Candidates per request."""
    k: Annotated[int, Field(ge=1, le=200)] = 25
    """Slots of a slate."""
    items: Annotated[int, Field(ge=2, le=2_000_000)] = 50_000
    users: Annotated[int, Field(ge=10, le=2_000_000)] = 20_000
    topics: Annotated[int, Field(ge=1, le=1000)] = 24
    behaviour: Behaviour = Behaviour()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.k <= self.candidates <= self.items:
            raise ValueError(
                f"k ≤ candidates ≤ items must hold, got {self.k}, {self.candidates}, {self.items}"
            )
        if self.end.tzinfo is None:
            raise ValueError("end must have a time zone")
        return self

    @property
    def start(self) -> datetime:
        """Begin of the first logged day."""
        return self.end - timedelta(days=self.days)
