"""Watches for drift in one replica: requests leave notes, a thread counts them up, tells, acts if it may.

On the request path one tuple is appended to a list, for at most ``requests_per_check`` requests a check;
binning, the store and everything that is said happen in the thread. What drift is, is :mod:`serve.drift`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from serve.assignment import Assignment
from serve.config import SidecarConfig
from serve.decide import Decision
from serve.drift import (
    LEVELS,
    SCORE,
    VALUE,
    WEIGHT,
    Collector,
    Counts,
    Level,
    Promise,
    Reference,
    Seen,
    Window,
    indices,
    levels_after,
    recommendation,
    thinned,
    worst,
)
from serve.drift_answers import DriftMetrics
from serve.drift_policy import chooses, promise_of, static_of
from serve.drift_store import Kept, MemoryReferences, References, StoredReferences
from serve.policies import Policies
from serve.policy import STATIC
from serve.policy_keeper import PolicyKeeper
from serve.policy_rules import Change
from triton_models.errors import PolicyConflictError, PutsError, StoreError
from triton_models.frontier import Frontier
from triton_models.surface import FloatArray

logger = logging.getLogger(__name__)

AUTHOR = "drift"
"""Author of references and of the static policy that the sidecar makes itself."""

Note = tuple[str | None, Assignment, Decision, npt.NDArray[Any] | None]
"""Cohort, what the request was assigned and given, and the ranker's scores [n, all heads]."""


class DriftMonitor:
    """One replica's watch."""

    def __init__(
        self,
        config: SidecarConfig,
        policies: Policies,
        keeper: PolicyKeeper,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config, self._surface = config.drift, config.surface
        self._policies, self._keeper = policies, keeper
        self._clock, self._now = clock, now
        self.metrics = DriftMetrics(registry)
        columns = (config.ranker.heads if config.ranker else None) or self._surface.heads
        self._columns_H = np.array([columns.index(head) for head in self._surface.controlled_heads])
        self._references: References = MemoryReferences()
        if config.policy_store is not None:
            self._references = StoredReferences(keeper.store, self._surface.fingerprint)
        self._notes: list[Note] = []
        self._room = self.config.requests_per_check if self.config.enabled else 0
        self._kept: Kept | None = None
        self._collector: Collector | None = None
        self._window = Window((), self.config.window_s)
        self._frontier: tuple[str | None, Frontier | None] = (None, None)
        self._promises: dict[tuple[bytes, str | None], Promise | None] = {}
        self._found: dict[str, float] = {}
        self._levels: dict[str, Level] = {}
        self._said: Level = "ok"
        self._forgot = False
        self._trouble = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ on the request path

    def observe(
        self,
        cohort: str | None,
        assigned: Assignment,
        decision: Decision,
        scores_nH: npt.NDArray[Any] | None = None,
    ) -> None:
        """Leave a note of a request, if there is room until the next check."""
        if self._room > 0:
            self._room -= 1
            self._notes.append((cohort, assigned, decision, scores_nH))

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start the thread."""
        if self.config.enabled:
            self._thread = threading.Thread(target=self._watch, name="drift-monitor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _watch(self) -> None:
        while not self._stop.wait(self.config.check_s):
            try:
                self.check()
            except Exception:  # the last net: without this thread nobody would hear of drift any more
                logger.exception("watching for drift broke")

    # ------------------------------------------------------------------ off the request path

    def check(self) -> None:
        """Count up what was noted, compare, tell, act. Never raises for the store's sake."""
        with self._lock:
            notes, self._notes = self._notes, []
            self._room = self.config.requests_per_check
            troubles = [self._tried(step) for step in (self._take_reference, self._take_frontier)]
            seen = [self._seen(note) for note in notes]
            self._window.add(seen, self._clock())
            troubles.append(self._tried(lambda: self._collect(seen)))
            trouble = next(filter(None, troubles), "")
            if trouble and not self._trouble:
                logger.warning("drift is watched with what is known: %s", trouble)
            self._trouble = trouble
            self._judge()

    def _tried(self, step: Callable[[], None]) -> str:
        """Do something with the store; what is wrong with it, if anything. Counting goes on without it."""
        try:
            step()
        except PolicyConflictError:
            logger.debug("another replica begins a reference")
        except StoreError as error:
            return str(error)
        return ""

    def _take_reference(self) -> None:
        """Be in step with the store: adopt the reference, or collect one."""
        wanted = self._policies.snapshot.policy.frontier_fingerprint
        kept = self._references.newest(wanted)
        if kept is None:
            kept = self._references.begin(wanted, author=AUTHOR, at=self._now())
        before = self._kept
        self._kept = kept
        if before is not None and (before.number, before.reference) == (kept.number, kept.reference):
            return
        reference = kept.reference
        if reference is not None and reference.heads == self._surface.controlled_heads:
            self._collector = None
            self._renew(reference.edges)
            logger.info("drift: scores are compared with reference %s", kept.number)
        elif before is None or before.number != kept.number:
            heads = self._surface.controlled_heads
            self._collector = Collector(heads, self.config, self._clock())
            self._renew(())
            logger.info("drift: collecting reference %s of the ranker's scores", kept.number)

    def _renew(self, edges: tuple[tuple[float, ...], ...]) -> None:
        """Compare the scores with others from now on, and count anew: what was found says nothing of them."""
        self._window = Window(edges, self.config.window_s)
        self._forget("")

    def _forget(self, *kinds: str) -> None:
        """Drop the figures of some kinds."""
        dropped = [name for name in self._found if name.startswith(kinds)]
        for name in dropped:  # a series cannot be taken back from the folder that replicas share
            self.metrics.index.labels(name).set(0.0)
        self._found = {name: index for name, index in self._found.items() if name not in dropped}
        self._levels = {name: level for name, level in self._levels.items() if name not in dropped}
        self._forgot |= bool(dropped)

    def _take_frontier(self) -> None:
        """Have the frontier of the policy in force, which says what its points promise.

        The scores are compared with the reference whatever the policy is: static weights by drift, which
        have no frontier, must not put out the alarm that they are the answer to.
        """
        fingerprint = self._policies.snapshot.policy.frontier_fingerprint
        if fingerprint != self._frontier[0]:
            found = self._keeper.store.frontier(fingerprint) if fingerprint is not None else None
            self._frontier = (fingerprint, found)
            self._promises.clear()
            self._window.forget_promises()
            self._forget(WEIGHT, VALUE)

    def _seen(self, note: Note) -> Seen:
        cohort, assigned, decision, scores_nH = note
        seen = Seen(scores_nH=None if scores_nH is None else thinned(scores_nH, self._columns_H))
        lambda_M = assigned.scalarization_M
        if decision.source != "value_network" or lambda_M is None:
            return seen
        if assigned.frontier_fingerprint is None or assigned.frontier_fingerprint != self._frontier[0]:
            return seen
        promise = self._promise(lambda_M, cohort)
        return replace(seen, weights_W=decision.weights_W, values_M=decision.values_M, promise=promise)

    def _promise(self, lambda_M: FloatArray, cohort: str | None) -> Promise | None:
        frontier = self._frontier[1]
        if frontier is None or (cohort is not None and cohort not in self._surface.cohorts):
            cohort = None
        key = (lambda_M.tobytes(), cohort)
        if key not in self._promises:
            self._promises[key] = promise_of(frontier, lambda_M, cohort)
        return self._promises[key]

    def _collect(self, seen: list[Seen]) -> None:
        if self._collector is not None and self._kept is not None:
            reference = self._collector.add(seen, self._clock())
            if reference is not None:
                self._references.finish(self._kept.number, reference)  # taken over at the next check

    # ------------------------------------------------------------------ telling

    def _judge(self) -> None:
        reference = self._reference
        counts = self._window.total(self._clock())
        # What has too few requests now, at night say, stays as it was last seen.
        found = self._indices(reference, counts)
        self._found = self._found | found
        self._levels = self._levels | levels_after(self._levels, found, self.config)
        self.metrics.reference.set(float(reference is not None))
        for name, index in self._found.items():
            self.metrics.index.labels(name).set(index)
        level = worst(self._levels)
        self.metrics.level.set(LEVELS.index(level))
        if level != self._said:
            loud = {"ok": logging.INFO, "warn": logging.WARNING, "act": logging.ERROR}[level]
            calm = "compared with something else now" if self._forgot else "all is as it was again"
            said = recommendation(self._found, self._levels, self.config)
            logger.log(loud, "drift: %s", said or calm)
            self._said = level
        self._forgot = False
        if self.config.on_limit == STATIC and worst(self._levels, SCORE) == "act":
            self._go_static()

    @property
    def _reference(self) -> Reference | None:
        return None if self._kept is None or self._collector is not None else self._kept.reference

    def _indices(self, reference: Reference | None, counts: Counts) -> dict[str, float]:
        nothing = Reference(heads=(), edges=(), counts=(), requests=1)
        return indices(self._surface, reference or nothing, counts, self.config.minimum_requests)

    def _go_static(self) -> None:
        """Put static weights in force; by compare-and-swap, so one of the replicas does it."""
        snapshot, kept = self._policies.snapshot, self._kept
        if not chooses(snapshot.policy) or kept is None or not self._references.kept:
            return
        if any(a.author == AUTHOR and a.at >= kept.made_at for a in self._keeper.known.activations):
            return  # once for each reference: who went back on it has seen why
        said = recommendation(self._found, self._levels, self.config) or ""
        change = Change(
            policy=static_of(snapshot.policy),
            reason=f"policy {snapshot.policy.version}: {said}"[:1000],
            expected_sequence=snapshot.activation.sequence,
        )
        try:
            self._keeper.apply(change, author=AUTHOR)
        except PolicyConflictError:
            self._keeper.look()  # another replica, or a person, was first
        except PutsError as error:
            logger.error("drift: static weights could not be put in force, tried again: %s", error)
        else:
            self.metrics.switches.inc()
            logger.error("drift: static weights are in force instead of %s", change.reason)

    # ------------------------------------------------------------------ people

    def begin_reference(self, author: str) -> None:
        """What is served from now on is how it should be: collect another reference.

        Raises:
            PolicyConflictError: somebody else did so at the same moment.
            StoreError: the store does not answer.
        """
        wanted = self._policies.snapshot.policy.frontier_fingerprint
        self._references.begin(wanted, author=author, at=self._now())

    def describe(self) -> dict[str, Any]:
        """A :class:`serve.drift_answers.DriftState`, as plain data."""
        kept, collector = self._kept, self._collector
        reference = None
        if kept is not None:
            whole = kept.reference.requests if kept.reference is not None else 0
            reference = {
                "number": kept.number,
                "frontier_fingerprint": kept.frontier_fingerprint,
                "author": kept.author,
                "made_at": kept.made_at,
                "complete": collector is None,
                "requests": whole if collector is None else collector.requests,
                "kept": self._references.kept,
            }
        found, levels = dict(self._found), dict(self._levels)
        return {
            "enabled": self.config.enabled,
            "level": worst(levels),
            "levels": levels,
            "indices": {name: round(index, 4) for name, index in found.items()},
            "recommendation": recommendation(found, levels, self.config),
            "requests": self._window.total(self._clock()).ranked,
            "reference": reference,
        }
