"""R3: policies changed and rolled back under load, and how long the old version was still answered."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.chaos.verdicts import POLICY_LIMIT_S, Verdict
from benchmarks.load.records import Records
from triton_models.errors import BenchmarkError

BETWEEN_S = 1.5
TIMEOUT_S = 10.0
UP_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class PolicyCall:
    """One call that put another version in force."""

    called_s: float
    version: int
    """In force from then on."""


def last_old_answers(records: Records, calls: Sequence[PolicyCall], end_s: float) -> list[float]:
    """Seconds from each call to the end of the last answer that did not carry its version yet.

    Pure. Looked at until the next call, or ``end_s``; 0 where every answer carried it at once.
    """
    found = []
    right = records.where(records.ok)
    ends = [*(call.called_s for call in calls[1:]), end_s][: len(calls)]
    for call, until_s in zip(calls, ends, strict=True):
        ended = right["ended_s"]
        inside = (ended >= call.called_s) & (ended < until_s) & (right["version"] != call.version)
        found.append(float(np.max(ended[inside], initial=call.called_s) - call.called_s))
    return found


def policy_verdict(records: Records, calls: Sequence[PolicyCall], end_s: float) -> Verdict:
    """R3, over all changes of a run."""
    spans = last_old_answers(records, calls, end_s)
    if not spans:
        return Verdict(target="R3 policy change", hit=False, found="no change was made")
    shown = ", ".join(f"{span:.2f}" for span in spans)
    return Verdict(
        target=f"R3 call to the last answer of the old version, all replicas, ≤ {POLICY_LIMIT_S:g} s",
        hit=max(spans) <= POLICY_LIMIT_S,
        found=f"{max(spans):.2f} s at most over {len(spans)} changes and roll-backs ({shown})",
    )


@dataclass
class PolicyCaller:
    """Changes policies over HTTP, and notes when."""

    address: str
    calls: list[PolicyCall] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def apply(self, scalarization: Sequence[float]) -> None:
        """Everybody gets one λ.

        Raises:
            BenchmarkError: it was refused.
        """
        body = {
            "policy": {"arms": [{"name": "everybody", "choice": list(scalarization)}]},
            "reason": "chaos: a change under load",
            "force_reason": "chaos has no frontier",
        }
        self._change("/v1/policies", body)

    def apply_when_up(self, scalarization: Sequence[float]) -> None:
        """The same, as soon as the store takes it.

        Raises:
            BenchmarkError: it never does.
        """
        deadline = time.monotonic() + UP_TIMEOUT_S
        while True:
            try:
                self.apply(scalarization)
            except BenchmarkError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def roll_back(self) -> None:
        """To the policy before.

        Raises:
            BenchmarkError: it was refused.
        """
        self._change("/v1/policy/rollback", {"reason": "chaos: back again"})

    def change_and_return(self) -> None:
        """Two changes and a return, a moment between them.

        Raises:
            BenchmarkError: one was refused.
        """
        for scalarization in ([1.0, 0.0], [0.0, 1.0]):
            self.apply(scalarization)
            time.sleep(BETWEEN_S)
        self.roll_back()
        time.sleep(BETWEEN_S)

    def expect_refusal(self) -> None:
        """A change that must not be taken: the store is away.

        Raises:
            BenchmarkError: it was taken.
        """
        try:
            self.apply([0.5, 0.5])
        except BenchmarkError as error:
            self.refused.append(str(error))
        else:
            raise BenchmarkError("a policy was taken although its store is away")

    def _change(self, path: str, body: dict[str, Any]) -> None:
        called_s = time.monotonic()
        answer = post(f"{self.address}{path}", {"author": "benchmarks chaos", **body})
        self.calls.append(PolicyCall(called_s=called_s, version=int(answer["version"])))


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST JSON; the answer.

    Raises:
        BenchmarkError: refused, or no answer; the reason.
    """
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            found: dict[str, Any] = json.loads(response.read())
            return found
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        raise BenchmarkError(f"{url}: {error.code}: {text[:300]}") from error
    except OSError as error:
        raise BenchmarkError(f"{url}: no answer: {error}") from error
