"""Keeps a replica's policy in step with the store: a thread that polls, a local copy, and the changes.

Every ``poll_s`` the thread asks for the number of the last activation, and when it is another one reads the
policy and swaps the whole snapshot. All replicas do so, hence a change is in force everywhere after one
poll. The store is never on a request's path: while it is down, or has lost its history, the last good
snapshot stays in force, after a restart from the local copy.

The same thread tells the other replicas through the store what the ramped arm is doing here
(:mod:`serve.guardrails`), looks at what it is doing everywhere, and goes back to the last good policy. All
replicas may come to that on their own; the store's compare-and-swap lets one of them do it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from serve.assignment import CompiledPolicy
from serve.config import SidecarConfig
from serve.guardrails import BUCKETS, Breach
from serve.policies import Now, Policies, Snapshot
from serve.policy import Activation, Policy
from serve.policy_rules import Change, Return, read_frontier, review
from serve.policy_store import InForce, PolicyStore
from serve.secrets import read_secret
from triton_models.errors import (
    PolicyConflictError,
    PolicyError,
    PutsError,
    StoreError,
)
from triton_models.files import write_atomically

logger = logging.getLogger(__name__)

StoreStatus = Literal["none", "up", "down", "behind", "unusable"]
"""No store; in step; does not answer; has fewer activations than we have seen; holds a policy that does not
fit this sidecar's surface."""

FIRST_LOOK_S = 2.0
"""How long the start waits for the store before it goes on with the local copy."""

EXCHANGE_S = 1.0
"""How often replicas tell each other what they count during a ramp, at most."""

FORGET_S = 3600.0
"""Counts of a replica that said nothing for so long, and for two windows, are removed from the store."""

GUARDRAIL = "guardrail"
"""Author of a roll-back that the sidecar made itself."""

MakeStore = Callable[[str, float], PolicyStore]


def open_store(url: str, timeout_s: float) -> PolicyStore:
    """The store behind a URL, which may be ``env:NAME`` or ``file:PATH`` for one with a password."""
    if url.startswith("env:"):
        url = read_secret(url, what="policy store")
    elif url.startswith("file:"):
        url = read_secret(url.removeprefix("file:"), what="policy store")
    return PolicyStore(url, timeout_s=timeout_s)


class PolicyKeeper:
    """One replica's link to the policy store."""

    def __init__(
        self,
        config: SidecarConfig,
        policies: Policies,
        *,
        make_store: MakeStore = open_store,
        now: Now = time.time,
    ) -> None:
        self._surface = config.surface
        self._config = config.policy_store
        self._policies = policies
        self._metrics = policies.metrics
        self._now = now
        self._store = make_store(self._config.url, self._config.timeout_s) if self._config else None
        self._copy = Path(self._config.local_copy) if self._config and self._config.local_copy else None
        # Held around every read-and-swap and every change: an older read must not overwrite a newer swap.
        self._lock = threading.Lock()
        self._known = InForce(activations=(), policy=None)
        self._name = uuid.uuid4().hex
        # The thread and whoever reports a metric both exchange: two at once would write one row twice.
        self._exchange_lock = threading.Lock()
        self._exchanged_s = 0.0
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._thread: threading.Thread | None = None
        self.status: StoreStatus = "none" if self._store is None else "down"
        self.detail = "" if self._store is None else "not asked yet"

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Put the local copy in force, then watch the store; waits a moment for its first answer."""
        if self._store is None:
            return
        self._read_copy()
        self._thread = threading.Thread(target=self._watch, name="policy-keeper", daemon=True)
        self._thread.start()
        self._looked.wait(FIRST_LOOK_S)

    def stop(self) -> None:
        """End the thread and close the store."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        if self._store is not None:
            self._store.close()

    def _watch(self) -> None:
        poll_s = self._config.poll_s if self._config else 1.0
        while not self._stop.is_set():
            try:
                self.look()
                self._looked.set()
                self.guard()
            except Exception:  # the last net: without this thread no change would arrive any more
                logger.exception("watching the policy store broke")
            self._stop.wait(poll_s)

    # ------------------------------------------------------------------ in step with the store

    def look(self) -> None:
        """Ask the store once; swap if it says something new. Never raises for the store's sake."""
        if self._store is None:
            return
        with self._lock:
            try:
                sequence = self._store.sequence()
                if sequence == 0 and self._known.sequence:
                    self._give_back()
                elif sequence < self._known.sequence:
                    self._set_status("behind", f"activation {sequence}, in force is {self._known.sequence}")
                    return
                elif sequence != self._known.sequence:
                    self._take_over(self._store.in_force())
                self._set_status("up", "")
            except PolicyConflictError:
                logger.debug("another replica gives the store its history back")
            except StoreError as error:
                self._set_status("down", str(error))
            except PutsError as error:
                self._set_status("unusable", str(error))

    def _take_over(self, state: InForce, *, save: bool = True) -> None:
        """Swap to what the store says.

        Raises:
            PolicyError: it does not fit this sidecar; the old one stays in force.
        """
        snapshot = self._snapshot(state)
        self._known = state
        if snapshot is not None:
            self._policies.swap(snapshot)
        if save:
            self._write_copy()

    def _snapshot(self, state: InForce) -> Snapshot | None:
        if state.activation is None:
            return None
        if state.policy is None:
            return Snapshot(compiled=self._policies.configured, activation=state.activation)
        if state.policy.surface_fingerprint != self._surface.fingerprint:
            raise PolicyError(
                f"policy {state.policy.version} is for another control surface; the last good one stays"
            )
        return Snapshot(compiled=CompiledPolicy(self._surface, state.policy), activation=state.activation)

    def _give_back(self) -> None:
        """An empty store beside a known policy: the database was lost. Put back what is known of it."""
        if self._store is None or self._known.activation is None:
            return
        self._store.restore(self._known)
        logger.warning("the policy store was empty; gave it back activation %s", self._known.sequence)

    def _set_status(self, status: StoreStatus, detail: str) -> None:
        if status != "up" and (self.status, self.detail) != (status, detail):
            logger.warning("policy store is %s: %s; the last good policy stays in force", status, detail)
        self.status, self.detail = status, detail
        self._metrics.set_store(up=status == "up")
        if status != "up":
            self._metrics.count_store_error()

    # ------------------------------------------------------------------ the local copy

    def _read_copy(self) -> None:
        if self._copy is None or not self._copy.exists():
            return
        try:
            data = json.loads(self._copy.read_text(encoding="utf-8"))
            activations = tuple(Activation(**line) for line in data["activations"])
            policy = None if data["policy"] is None else Policy.model_validate(data["policy"])
            self._take_over(InForce(activations=activations, policy=policy), save=False)
        except (OSError, ValueError, TypeError, KeyError, PutsError) as error:
            logger.warning("%s: the local copy of the policy is not used: %s", self._copy, error)

    def _write_copy(self) -> None:
        if self._copy is None:
            return
        policy = self._known.policy
        data = {
            "activations": [activation.__dict__ for activation in self._known.activations],
            "policy": None if policy is None else policy.model_dump(mode="json"),
        }
        try:
            write_atomically(self._copy, json.dumps(data))
        except OSError as error:
            logger.warning("%s: the local copy of the policy cannot be written: %s", self._copy, error)

    # ------------------------------------------------------------------ changes

    @property
    def store(self) -> PolicyStore:
        """The store.

        Raises:
            StoreError: this sidecar has none.
        """
        if self._store is None:
            raise StoreError("this sidecar has no policy store; start it with --policy-store URL")
        return self._store

    @property
    def known(self) -> InForce:
        """What the store said last, or the local copy."""
        return self._known

    def apply(self, change: Change, *, author: str) -> InForce:
        """Check a policy, write it and put it in force, here at once and elsewhere within a poll.

        Raises:
            PolicyError, SurfaceMismatchError: it may not be applied.
            PolicyConflictError: somebody else's change came first.
            StoreError: the store does not answer.
        """
        store = self.store
        frontier = None
        if change.frontier is not None:
            frontier = read_frontier(change.frontier, self._surface)
        elif change.frontier_fingerprint is not None:
            frontier = store.frontier(change.frontier_fingerprint)
            if frontier is None:
                raise PolicyError(f"the store has no frontier {change.frontier_fingerprint}; send it whole")
            self._surface.require_same(
                frontier.surface_object, this="the sidecar", that="the stored frontier"
            )
        with self._lock:
            before = self._policies.snapshot.policy
            policy = review(change, self._surface, frontier, before=before, author=author, at=self._now())
            expected = self._expected(change.expected_sequence)
            self._take_over(store.add(policy, expected=expected, frontier=frontier))
            self._metrics.count_change("apply")
            return self._known

    def go_back(self, back: Return, *, author: str) -> InForce:
        """Put an earlier policy in force again.

        Raises:
            PolicyNotFoundError: there is none.
            PolicyConflictError: somebody else's change came first.
            StoreError: the store does not answer.
        """
        store = self.store
        with self._lock:
            state = store.go_back(
                expected=self._expected(back.expected_sequence),
                author=author,
                reason=back.reason,
                at=self._now(),
                version=back.version,
                surface_fingerprint=self._surface.fingerprint,
            )
            self._take_over(state)
            self._metrics.count_change("rollback")
            return self._known

    def _expected(self, given: int | None) -> int:
        return self._known.sequence if given is None else given

    # ------------------------------------------------------------------ guardrails

    def guard(self) -> Breach | None:
        """Look at the ramped arm; go back to the last good policy if a limit is crossed."""
        snapshot = self._policies.snapshot
        self._exchange(snapshot)
        crossed = self._policies.watch.breach(snapshot.policy.version, self._now())
        if crossed is None or self._store is None:
            return None
        reason = f"policy {snapshot.policy.version}: {crossed.reason}"[:1000]
        back = Return(reason=reason, expected_sequence=snapshot.activation.sequence)
        try:
            self.go_back(back, author=GUARDRAIL)
        except PolicyConflictError:
            self.look()  # another replica, or a person, was first
        except PutsError as error:
            logger.error("the guardrail's roll-back failed and is tried again: %s", error)
            self._set_status("down", str(error))
            return None
        else:
            self._metrics.count_guardrail(crossed.limit)
            logger.error("guardrail: went back from %s", reason)
        return crossed

    def _exchange(self, snapshot: Snapshot) -> None:
        """Say what was counted here and hear what was counted elsewhere, under the same activation."""
        policy, now_s = snapshot.policy, self._now()
        told = self._policies.watch.told(policy.version, now_s)
        window_s = policy.guardrails.window_s
        if self._store is None or told is None:
            return
        with self._exchange_lock:
            if 0 <= now_s - self._exchanged_s < min(EXCHANGE_S, window_s / BUCKETS):
                return
            self._exchanged_s = now_s
            try:
                heard = self._store.exchange_windows(
                    replica=self._name,
                    sequence=snapshot.activation.sequence,
                    at=now_s,
                    body=told,
                    forget_before=now_s - max(FORGET_S, 2 * window_s),
                )
            except (StoreError, PolicyConflictError) as error:  # the poll says that the store is down
                logger.debug("what the ramped arm does elsewhere is not known: %s", error)
                return
            self._policies.watch.hear(policy.version, heard)

    def describe(self) -> dict[str, Any]:
        """For ``/readyz``."""
        return {
            "version": self._policies.snapshot.policy.version,
            "sequence": self._policies.snapshot.activation.sequence,
            "store": self.status,
            "detail": self.detail,
        }


def require_openable(config: SidecarConfig) -> None:
    """Refuse a store URL that cannot be meant, before replicas are made; its absence is no obstacle.

    Raises:
        ConfigurationError: what is wrong with it.
    """
    if config.policy_store is not None:
        open_store(config.policy_store.url, config.policy_store.timeout_s).close()
