"""How fast a served model answers: latency at each batch size, and what its batcher makes of load.

A request's time is split with the server's own counters: queue (waiting for the batcher) and compute
(input, inference, output) are means over the requests of the measurement; the rest, client included, is
transport. The counters cover all clients of the model, so other traffic shows in them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triton_models.parity import Inputs
from triton_models.remote import Answered, RemoteServer, Statistics

LIVE_OUTPUTS = ("weights", "action", "values")
"""What a live client asks for, in the measured requests too."""
WARM_UP_REQUESTS = 5


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Requests of one batch size, one after the other."""

    batch_size: int
    requests: int
    failures: int
    p50_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests of batch size 1, many at a time."""

    concurrency: int
    requests: int
    failures: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float
    inferences: int
    executions: int
    effective_batch_size: float
    """inferences / executions."""


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4, … and the largest."""
    sizes = [2**power for power in range(max(max_batch_size, 1).bit_length())]
    return tuple(sorted({*sizes, max(max_batch_size, 1)}))


def measure_latency(
    server: RemoteServer, model: str, inputs: Inputs, *, batch_size: int, requests: int
) -> Latency:
    """Send ``requests`` requests of ``batch_size`` rows, one after the other, after a warm-up."""
    arrays = _rows(inputs, range(batch_size))
    answered, spent, _ = _timed(server, model, [arrays], requests, concurrency=1)
    p50_ms, p99_ms = _percentiles_ms(answered)
    return Latency(
        batch_size=batch_size,
        requests=requests,
        failures=_failures(answered),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        queue_ms=_mean_ms(spent.queue_s, spent),
        compute_ms=_mean_ms(spent.compute_s, spent),
    )


def measure_load(
    server: RemoteServer, model: str, inputs: Inputs, *, concurrency: int, requests: int
) -> Load:
    """Keep ``concurrency`` requests of one row under way until ``requests`` are answered."""
    rows = [_rows(inputs, [i]) for i in range(len(next(iter(inputs.values()))))]
    answered, spent, seconds = _timed(server, model, rows, requests, concurrency=concurrency)
    p50_ms, p99_ms = _percentiles_ms(answered)
    return Load(
        concurrency=concurrency,
        requests=requests,
        failures=_failures(answered),
        requests_per_s=requests / seconds,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        queue_ms=_mean_ms(spent.queue_s, spent),
        compute_ms=_mean_ms(spent.compute_s, spent),
        inferences=spent.inferences,
        executions=spent.executions,
        effective_batch_size=spent.inferences / max(spent.executions, 1),
    )


def _timed(
    server: RemoteServer, model: str, requests: Sequence[Inputs], count: int, *, concurrency: int
) -> tuple[list[Answered], Statistics, float]:
    server.infer_many(model, requests, WARM_UP_REQUESTS, concurrency=1, outputs=LIVE_OUTPUTS)
    before = server.statistics(model)
    began = time.perf_counter()
    answered = server.infer_many(model, requests, count, concurrency=concurrency, outputs=LIVE_OUTPUTS)
    seconds = time.perf_counter() - began
    return answered, server.statistics(model).since(before), seconds


def _rows(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    return {name: np.take(array, rows, axis=0, mode="wrap") for name, array in inputs.items()}


def _failures(answered: Sequence[Answered]) -> int:
    return sum(answer.problem is not None for answer in answered)


def _percentiles_ms(answered: Sequence[Answered]) -> tuple[float, float]:
    times = np.array([answer.seconds for answer in answered]) * 1e3
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def _mean_ms(total_s: float, spent: Statistics) -> float:
    return total_s / max(spent.requests, 1) * 1e3
