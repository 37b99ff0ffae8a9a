"""One request from parsed body to answer: encode, fan out, wait, decide, blend, cut.

The ranker and the value network (:mod:`serve.value_race`) start at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from serve.blend import Blend, top_k
from serve.clients import (
    RankerClient,
    TritonRankerClient,
    TritonValueClient,
    ValueClient,
    ranker_state_inputs,
)
from serve.config import SidecarConfig
from serve.context import CURRENT
from serve.decide import (
    Decision,
    OperatingPoint,
)
from serve.decision_log_metrics import open_decision_log
from serve.drift_monitor import DriftMonitor
from serve.fanout import Clock
from serve.links import ValueLinks
from serve.metrics import Metrics
from serve.policies import Policies
from serve.policy_keeper import PolicyKeeper
from serve.rankers import Failure, Question, Rankers
from serve.requests import RankRequest, WeightsRequest
from serve.value_race import Begun, Encoded, ValueRace, ValueRaces
from serve.wire import Headers
from triton_models.encoding import StateTensors, encode_state
from triton_models.errors import (
    RequestError,
    StateError,
    StateIncompleteError,
)
from triton_models.surface import Surface

logger = logging.getLogger(__name__)

DRAIN_S = 2.0
READY_S = 2.0
"""How long ``/readyz`` waits for what the rankers say."""

CALLERS_OWN = frozenset({"no_ranker", "ranker_refused"})
"""Rankings that failed for their caller's own reasons: no policy is blamed for them."""


def milliseconds(seconds: float | None) -> float | None:
    """Seconds as milliseconds with three digits."""
    return None if seconds is None else round(seconds * 1000.0, 3)


class Sidecar:
    """The sidecar without HTTP. Made and used inside one event loop."""

    def __init__(
        self,
        config: SidecarConfig,
        *,
        value_clients: Sequence[ValueClient] | None = None,
        ranker_clients: Sequence[RankerClient] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        surface, network = config.surface, config.value_network
        self.config = config
        self.metrics = Metrics(surface)
        self.point = OperatingPoint.parse(
            surface, {"scalarization": config.scalarization, "control": config.control}
        )
        self.policies = Policies(config, self.point, self.metrics)
        self.keeper = PolicyKeeper(config, self.policies)
        self.drift = DriftMonitor(config, self.policies, self.keeper, self.metrics.registry)
        self._clock = clock
        if value_clients is None:
            value_clients = [TritonValueClient(surface, network, address) for address in network.addresses]
        if ranker_clients is None:
            ranker = config.ranker
            addresses = ranker.addresses if ranker else ()
            ranker_clients = [TritonRankerClient(surface, ranker, a) for a in addresses if ranker]
        self.links = ValueLinks(
            surface,
            network,
            value_clients,
            self.metrics,
            expected_run_id=config.expected_run_id,
            clock=clock,
        )
        self.values = ValueRaces(surface, network, self.links, self.metrics, clock)
        self.decisions = open_decision_log(config, self.metrics.registry)
        self.rankers: Rankers | None = None
        if config.ranker is not None:
            self.rankers = Rankers(config.ranker, list(ranker_clients), self.metrics, clock)
            self._blend = Blend(surface, config.ranker.heads or surface.heads)
            self._ranker_needs = set(ranker_state_inputs(surface, config.ranker))

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up the policy in force, start watching the value-network servers, and the decision log."""
        await asyncio.to_thread(self.keeper.start)
        self.drift.start()
        if self.decisions is not None:
            self.decisions.start()
        await self.links.start()

    async def stop(self) -> None:
        """Let calls in flight end, then close the connections."""
        await asyncio.to_thread(self.drift.stop)
        await asyncio.to_thread(self.keeper.stop)
        if self.rankers is not None:
            await self.rankers.stop(DRAIN_S)
        await self.links.stop()
        if self.decisions is not None:
            await asyncio.to_thread(self.decisions.close)

    def apply(self, user_config: object) -> None:
        """Validate new operating values first, then swap them in, whole.

        Raises:
            ConfigurationError: they do not fit; the old ones stay in force.
        """
        self.point = OperatingPoint.parse(self.config.surface, user_config)
        self.policies.configure(self.point)

    # ------------------------------------------------------------------ requests

    async def weights(self, request: WeightsRequest, headers: Headers) -> dict[str, Any]:
        """Answer ``/v1/weights``."""
        begun = self._begin(request)
        race = self.values.start(begun, headers, beside_ranker=False)
        decision = await self.values.finish(race, begun.started_s)
        self.policies.record(begun.assigned, decision)
        self.drift.observe(request.cohort, begun.assigned, decision)
        return self._answer(request, begun, decision, race)

    async def rank(self, request: RankRequest, headers: Headers) -> dict[str, Any] | Failure:
        """Answer ``/v1/rank``.

        Raises:
            RequestError: the ranker's own inputs cannot be made from the state.
        """
        begun = self._begin(request)
        answer = await self._rank(request, begun, headers)
        if isinstance(answer, Failure) and answer.type not in CALLERS_OWN and begun.control:
            self.policies.record_failure(begun.assigned)
        return answer

    async def _rank(self, request: RankRequest, begun: Begun, headers: Headers) -> dict[str, Any] | Failure:
        rankers = self.rankers
        if rankers is None or not rankers.links:
            return Failure(type="no_ranker", message="this sidecar has no ranker; ask /v1/weights instead")
        tensors = self._ranker_tensors(request, begun.encoded)
        # The ranker first: it is the longer leg, the value network has its time beside it.
        scoring = rankers.start(Question(tensors, request.candidates, headers, request.features))
        if isinstance(scoring, Failure):
            return scoring
        race = self.values.start(begun, headers, beside_ranker=True)
        scores_nH = await rankers.finish(scoring)
        if isinstance(scores_nH, Failure):
            self.values.leave(race)
            return scores_nH
        call = scoring.call
        self.links.observe_ranker(call.duration_s or 0.0)
        decision = await self.values.finish(race, begun.started_s)
        added_s = self._clock() - (call.ended_s or begun.started_s) if race.call is not None else 0.0
        self.metrics.observe("added", added_s)
        utility_n = self._blend.utility(scores_nH, decision.weights_W)
        if not np.isfinite(utility_n).all():
            message = "the ranker's scores are too large: the utility overflows"
            return Failure(type="ranker_invalid_answer", message=message)
        best_k = top_k(utility_n, request.k)
        answer = {
            "items": [request.candidates[i] for i in best_k.tolist()],
            "scores": utility_n[best_k].tolist(),
        }
        legs = {"ranker": milliseconds(call.duration_s), "added": milliseconds(added_s)}
        self.policies.record(begun.assigned, decision, added_s=added_s)
        self.drift.observe(request.cohort, begun.assigned, decision, scores_nH)
        return self._answer(request, begun, decision, race, answer, legs)

    # ------------------------------------------------------------------ parts

    def _begin(self, request: WeightsRequest) -> Begun:
        started_s, encoded = self._clock(), self._encode(request)
        control = self.point.control and request.control
        assigned = self.policies.assign(request, explorable=control and encoded.problem is None)
        if (context := CURRENT.get()) is not None:
            context.arm, context.policy_version = assigned.arm, assigned.policy_version
        return Begun(started_s=started_s, control=control, encoded=encoded, assigned=assigned)

    def _encode(self, request: WeightsRequest) -> Encoded:
        try:
            return Encoded(encode_state(self.config.surface, request.state or {}), None)
        except StateError as error:
            incomplete = isinstance(error, StateIncompleteError)
            return Encoded({}, "state_incomplete" if incomplete else "state_invalid", str(error))

    def _ranker_tensors(self, request: WeightsRequest, encoded: Encoded) -> StateTensors:
        """What the ranker needs of the state, even where the value network's part of it is unusable."""
        if encoded.problem is None or not self._ranker_needs:
            return encoded.tensors
        needs_history = any(name.startswith("history_") for name in self._ranker_needs)
        if needs_history or self.config.surface.state.history is None:
            raise RequestError(encoded.message)
        try:
            return encode_state(_without_history(self.config.surface), request.state or {})
        except StateError as error:
            raise RequestError(f"{error}; the ranker needs it") from error

    def _answer(
        self,
        request: WeightsRequest,
        begun: Begun,
        decision: Decision,
        race: ValueRace,
        ranking: dict[str, Any] | None = None,
        legs: dict[str, float | None] | None = None,
    ) -> dict[str, Any]:
        surface = self.config.surface
        assigned, values = begun.assigned, decision.values_M
        scalarization_M = assigned.scalarization_M
        total_s = self._clock() - begun.started_s
        self.metrics.observe("total", total_s)
        answer = {
            "request_id": request.request_id,
            **(ranking or {}),
            "weights": dict(zip(surface.controlled_heads, decision.weights_W.tolist(), strict=True)),
            "action": decision.action,
            "values": None if values is None else dict(zip(surface.objectives, values.tolist(), strict=True)),
            "source": decision.source,
            "reason": decision.reason,
            "arm": assigned.arm,
            "policy_version": assigned.policy_version,
            "propensity": assigned.propensity,
            "scalarization": None
            if scalarization_M is None
            else dict(zip(surface.objectives, scalarization_M.tolist(), strict=True)),
            "surface_fingerprint": surface.fingerprint,
            "timings_ms": {
                **(legs or {}),
                "value_network": milliseconds(race.call.duration_s) if race.call else None,
                "total": milliseconds(total_s),
            },
        }
        if self.decisions is not None:
            context = CURRENT.get()
            self.decisions.record(
                request,
                answer,
                route="weights" if ranking is None else "rank",
                tensors=begun.encoded.tensors,
                frontier_fingerprint=assigned.frontier_fingerprint,
                run_id=self.links.run_of(race.link, decision) if race.link is not None else None,
                trace_id=context.trace_id if context is not None else None,
            )
        return answer

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests can be answered, and what is known of everybody behind."""
        links = self.rankers.links if self.rankers else []
        # All at once: one that hangs must not cost a readiness probe its time-out for each of the others.
        probes = [asyncio.ensure_future(link.client.ready()) for link in links]
        if probes:
            await asyncio.wait(probes, timeout=READY_S)
        rankers = [
            {
                "address": link.client.name,
                "ready": probe.done() and probe.result(),
                "breaker": link.breaker.kind,
            }
            for link, probe in zip(links, probes, strict=True)
        ]
        ready = not rankers or any(ranker["ready"] for ranker in rankers)
        overall = self.links.overall
        degraded = {
            "verified": None,
            "mismatch": "surface_mismatch",
            "open": "breaker_open",
            "unreachable": "unavailable",
        }[overall]
        return ready, {
            "ready": ready,
            "degraded": degraded,
            "value_network": self.links.describe(),
            "ranker": rankers,
            "policy": self.keeper.describe(),
            "drift": self.drift.describe(),
            "surface_fingerprint": self.config.surface.fingerprint,
            "decision_log": None if self.decisions is None else self.decisions.describe(),
        }


def _without_history(surface: Surface) -> Surface:
    state = surface.state.model_copy(update={"history": None})
    return surface.model_copy(update={"state": state})
