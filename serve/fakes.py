"""Stand-ins for the outside, shipped for tests and rehearsals: same protocols, no network.

Shape legend as in :mod:`serve.clients`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.clients import NO_FEATURES, Features, Scores, ValueQuestion
from serve.decide import ValueAnswer
from serve.wire import Headers
from triton_models.encoding import StateTensors
from triton_models.surface import FloatArray, Surface


@dataclass
class FakeValueClient:
    """A value network that always picks ``action``, after ``delay_s``, unless ``error`` is set."""

    surface: Surface
    action: int = 0
    delay_s: float = 0.0
    error: Exception | None = None
    answer: ValueAnswer | None = None
    """Given instead of the honest one."""
    gate: asyncio.Event | None = None
    """If set, every call waits for it: a stopped server."""
    check_error: Exception | None = None
    served: Surface | None = None
    """Surface that the server claims to have been made for; None: the right one."""
    name: str = "fake-value-network"
    max_rows: int = 64
    version: str = "1"
    """The version that answers."""
    run_id: str = "fake"
    """Of that version."""
    described_version: str | None = None
    rows: list[int] = field(default_factory=list)
    """How many questions each call had."""
    calls: list[tuple[StateTensors, FloatArray, dict[str, str]]] = field(default_factory=list)

    async def choose(
        self, tensors: StateTensors, scalarization_M: FloatArray, headers: Headers
    ) -> ValueAnswer:
        """Record the call; answer as set up."""
        (answer,) = await self.choose_many([ValueQuestion(tensors, scalarization_M, headers)])
        return answer

    async def choose_many(self, questions: Sequence[ValueQuestion]) -> list[ValueAnswer]:
        """Record the questions; answer all as set up."""
        self.rows.append(len(questions))
        self.calls += [(q.tensors, q.scalarization_M, dict(q.headers)) for q in questions]
        if self.gate is not None:
            await self.gate.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        answer = self.answer or ValueAnswer(
            weights_W=self.surface.actions[self.action].astype(np.float32),
            action=self.action,
            values_M=np.full(len(self.surface.objectives), 0.5, dtype=np.float32),
            version=self.version,
        )
        return [answer] * len(questions)

    async def parameters(self) -> dict[str, str]:
        """Parameters as the exporter writes them."""
        if self.check_error is not None:
            raise self.check_error
        surface = self.served or self.surface
        self.described_version = self.version or None
        return {
            "surface": json.dumps(surface.to_dict()),
            "surface_fingerprint": surface.fingerprint,
            "run_id": self.run_id,
        }

    async def close(self) -> None:
        """Nothing to give back."""


def ascending_scores(candidates: Sequence[Any], num_heads: int) -> Scores:
    """Scores that grow with the position of a candidate."""
    column = np.linspace(0.0, 1.0, len(candidates))
    return np.repeat(column[:, np.newaxis], num_heads, axis=1)


@dataclass
class FakeRankerClient:
    """A ranker whose scores are a function of the candidates, after ``delay_s``."""

    num_heads: int
    delay_s: float = 0.0
    error: Exception | None = None
    scores: Callable[[Sequence[Any], int], Scores] = ascending_scores
    gate: asyncio.Event | None = None
    name: str = "fake-ranker"
    calls: list[tuple[StateTensors, list[Any], dict[str, str]]] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)

    async def score(
        self,
        tensors: StateTensors,
        candidates: Sequence[Any],
        headers: Headers,
        features: Features = NO_FEATURES,
    ) -> Scores:
        """Record the call; answer as set up."""
        self.features.append(features)
        self.calls.append((tensors, list(candidates), dict(headers)))
        if self.gate is not None:
            await self.gate.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return self.scores(candidates, self.num_heads)

    async def ready(self) -> bool:
        """Ready unless it would fail."""
        return self.error is None

    async def close(self) -> None:
        """Nothing to give back."""
