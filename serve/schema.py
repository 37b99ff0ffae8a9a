"""Bodies and answers for people and for OpenAPI. The hot path does not run these models; tests do."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serve.decide import Reason, Source
from serve.policy_schema import StoreState
from serve.requests import DEFAULT_K, MAX_NAME

Name = Annotated[str, Field(max_length=MAX_NAME)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class History(BaseModel):
    """The user's recent actions, newest last, three lists of one length."""

    embedding: list[list[float]]
    action: list[str]
    age_s: list[float]


class State(BaseModel):
    """What the request knows before any candidate is scored; dimensions as in the control surface."""

    user_embedding: list[float]
    history: History | None = None
    context: dict[str, str | None] = Field(default_factory=dict)


class WeightsBody(_Body):
    """Body of ``POST /v1/weights``."""

    request_id: Name | None = None
    user_id: Name | None = None
    cohort: Name | None = None
    placement: Name | None = None
    """Where the answer is shown; the policy can exclude placements from exploration."""
    state: State | None = None
    control: bool = True
    """False: production weights, without asking the value network."""


class RankBody(WeightsBody):
    """Body of ``POST /v1/rank``."""

    candidates: Annotated[list[int] | list[str], Field(min_length=1)]
    k: Annotated[int, Field(ge=1)] = DEFAULT_K


class Timings(BaseModel):
    """Milliseconds. Null: the leg was not started, or had not ended."""

    ranker: float | None = None
    value_network: float | None
    added: float | None = None
    """Waited for the value network after the ranker had answered."""
    total: float


class WeightsAnswer(_Body):
    """Answer of ``POST /v1/weights``."""

    request_id: str
    weights: dict[str, float]
    action: int | None
    values: dict[str, float] | None
    source: Source
    reason: Reason | None
    """Why production weights were served as a fallback; null otherwise."""
    arm: str
    policy_version: int
    propensity: float | None
    """Probability with which an exploring request drew its action; null where nothing was drawn."""
    scalarization: dict[str, float] | None
    """λ of the user's arm and cohort; null: they get production weights."""
    surface_fingerprint: str
    timings_ms: Timings


class RankAnswer(WeightsAnswer):
    """Answer of ``POST /v1/rank``: the top k, best first, and their utilities."""

    items: list[int] | list[str]
    scores: list[float]


class Problem(BaseModel):
    """What went wrong."""

    type: str
    message: str
    request_id: str | None = None
    """Under which the log says more."""


class ErrorAnswer(BaseModel):
    """Every answer that is not 200."""

    error: Problem


class Alive(BaseModel):
    """Answer of ``GET /healthz``."""

    alive: bool


class ServerState(BaseModel):
    """What is known of one server behind the sidecar; more fields tell why."""

    model_config = ConfigDict(extra="allow")

    address: str


class Readiness(BaseModel):
    """Answer of ``GET /readyz``."""

    model_config = ConfigDict(extra="allow")

    ready: bool
    degraded: str | None
    """Why the value network is not in use; null when it is."""
    value_network: list[ServerState]
    ranker: list[ServerState]
    policy: StoreState
    surface_fingerprint: str
