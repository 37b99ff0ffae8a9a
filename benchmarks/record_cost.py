"""What the decision log costs the event loop: each ``record`` call, and what its writer's thread takes away.

Blocks with and without the log take turns in one run. In a block an event loop answers made-up requests at a
fixed rate, and a ticker beside them notes how late it is woken: the writer's thread shares the interpreter
with the loop, so what it holds shows there and not in the calls.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve.decision_log import DecisionLog
from serve.decision_log_config import DecisionLogConfig
from serve.requests import WeightsRequest
from triton_models.encoding import encode_state
from triton_models.errors import BenchmarkError
from triton_models.surface import Surface

TICK_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how much."""

    rate_hz: float = 500.0
    """Requests a second."""
    sample_rate: float = 1.0
    blocks: int = 10
    """Pairs of blocks, without and with the log."""
    block_s: float = 2.0

    def __post_init__(self) -> None:
        if not (self.rate_hz > 0 and self.blocks >= 1 and self.block_s > 0 and 0 <= self.sample_rate <= 1):
            raise BenchmarkError("record: rate, blocks and block-s must be positive, sample-rate in [0, 1]")


@dataclass
class Block:
    """What one block saw."""

    calls_us: list[float] = field(default_factory=list)
    late_us: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One request, its answer and its tensors; only the id changes."""

    surface: Surface

    def state(self) -> dict[str, Any]:
        """A state with a full history."""
        spec, random = self.surface.state, np.random.default_rng(1)
        state: dict[str, Any] = {"user_embedding": random.normal(size=spec.user_embedding).tolist()}
        if spec.history is not None:
            state["history"] = {
                "embedding": random.normal(size=(spec.history.length, spec.history.embedding)).tolist(),
                "action": [spec.history.actions[0]] * spec.history.length,
                "age_s": [60.0] * spec.history.length,
            }
        return state | {"context": {name: words[0] for name, words in spec.context.items()}}

    def answer(self) -> dict[str, Any]:
        """An answer as the sidecar makes it."""
        surface = self.surface
        weights, ones = surface.actions[0].tolist(), [0.5] * len(surface.objectives)
        return {
            "weights": dict(zip(surface.controlled_heads, weights, strict=True)),
            "values": dict(zip(surface.objectives, ones, strict=True)),
            "scalarization": dict(zip(surface.objectives, ones, strict=True)),
            **{"action": 0, "source": "value_network", "reason": None, "arm": "all", "policy_version": 1},
            **{"propensity": None, "surface_fingerprint": surface.fingerprint},
            "timings_ms": {"ranker": 15.0, "value_network": 3.0, "added": 0.1, "total": 15.5},
        }


async def _block(case: Case, log: DecisionLog | None, plan: Plan, first: int) -> Block:
    block, state, answer = Block(), case.state(), case.answer()
    end_s = time.perf_counter() + plan.block_s
    ticker = asyncio.create_task(_tick(block, end_s))
    number, start_s = first, time.perf_counter()
    while time.perf_counter() < end_s:
        # Fresh tensors each time, as a request brings them.
        tensors = encode_state(case.surface, state)
        request = WeightsRequest(
            request_id=f"r{number}", user_id="u1", cohort=None, placement=None, state=state, control=True
        )
        began_ns = time.perf_counter_ns()
        if log is not None:
            log.record(request, answer, route="rank", tensors=tensors, run_id="run")
        block.calls_us.append((time.perf_counter_ns() - began_ns) / 1000.0)
        number += 1
        await asyncio.sleep(max(0.0, start_s + (number - first) / plan.rate_hz - time.perf_counter()))
    await ticker
    return block


async def _tick(block: Block, end_s: float) -> None:
    while (now_s := time.perf_counter()) < end_s:
        await asyncio.sleep(TICK_S)
        block.late_us.append((time.perf_counter() - now_s - TICK_S) * 1e6)


def measure(surface: Surface, plan: Plan) -> dict[str, Any]:
    """Run all blocks; percentiles in microseconds, and what the log did."""
    case, without, with_log = Case(surface), Block(), Block()
    with tempfile.TemporaryDirectory(prefix="puts-record-") as folder:
        config = DecisionLogConfig(
            folder=str(Path(folder) / "log"), sample_rate=plan.sample_rate, min_free_bytes=0
        )
        log = DecisionLog(surface, config)
        log.start()
        for number in range(plan.blocks):
            first = number * 1_000_000
            for target, used in ((without, None), (with_log, log)):
                block = asyncio.run(_block(case, used, plan, first))
                target.calls_us += block.calls_us
                target.late_us += block.late_us
        log.close()
        report = log.describe()
    return {
        "plan": {**plan.__dict__},
        "record_us": _percentiles(with_log.calls_us),
        "empty_call_us": _percentiles(without.calls_us),
        "loop_late_with_us": _percentiles(with_log.late_us),
        "loop_late_without_us": _percentiles(without.late_us),
        "log": report,
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    names = ("p50", "p99", "p99.9")
    found = np.percentile(values, [50, 99, 99.9]) if values else [float("nan")] * 3
    return {name: round(float(value), 2) for name, value in zip(names, found, strict=True)}


def table(result: dict[str, Any]) -> str:
    """The percentiles as Markdown."""
    rows = {
        "`record()`": "record_us",
        "(the same without a log)": "empty_call_us",
        "loop woken late, with the log": "loop_late_with_us",
        "loop woken late, without": "loop_late_without_us",
    }
    lines = ["| µs | p50 | p99 | p99.9 |", "|---|---|---|---|"]
    for label, key in rows.items():
        found = result[key]
        lines.append(f"| {label} | {found['p50']} | {found['p99']} | {found['p99.9']} |")
    return "\n".join(lines)
