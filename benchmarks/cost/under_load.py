"""Many requests in flight at once: throughput, and the batches that Triton's dynamic batcher forms."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cost.contestants import choice_inputs
from benchmarks.cost.networks import Subject
from benchmarks.cost.timed_client import TimedClient
from triton_models.errors import BenchmarkError
from triton_models.probe import RPC_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class Concurrency:
    """What many requests in flight at once come to."""

    subject: str
    batch: int
    in_flight: int
    choices_per_s: float
    effective_batch: float
    """Rows per execution that the dynamic batcher formed."""
    median_s: float
    high_s: float
    """95th percentile."""
    requests: int


def under_load(subject: Subject, client: TimedClient, in_flight: int, duration_s: float) -> Concurrency:
    """Closed loop: always ``in_flight`` requests of batch 1 under way, answered ones replaced at once."""
    pool = choice_inputs(subject, 64)
    requests = [client.inputs({name: array[i : i + 1] for name, array in pool.items()}) for i in range(64)]
    answers: queue.SimpleQueue[tuple[float, Exception | None]] = queue.SimpleQueue()

    def send(number: int) -> None:
        start = time.perf_counter()

        def complete(result: Any, error: Exception | None) -> None:
            answers.put((time.perf_counter() - start, error))

        client.connection.async_infer(
            client.model,
            requests[number % len(requests)],
            callback=complete,
            outputs=client.outputs,
            client_timeout=RPC_TIMEOUT_S,
        )

    def collect() -> float:
        try:
            span, error = answers.get(timeout=2 * RPC_TIMEOUT_S)
        except queue.Empty:
            raise BenchmarkError(f"{subject.label}: Triton stopped answering under load") from None
        if error is not None:
            raise BenchmarkError(f"{subject.label}: Triton failed under load: {error}")
        return span

    for number in range(in_flight):
        send(number)
    for number in range(4 * in_flight):  # warm-up: the batches of this load have formed
        collect()
        send(number)
    before, begin = client.statistics(), time.perf_counter()
    spans: list[float] = []
    while time.perf_counter() - begin < duration_s:
        spans.append(collect())
        send(len(spans))
    elapsed, after = time.perf_counter() - begin, client.statistics()
    for _ in range(in_flight):
        collect()
    executions = after["executions"] - before["executions"]
    return Concurrency(
        subject=subject.key,
        batch=1,
        in_flight=in_flight,
        choices_per_s=len(spans) / elapsed,
        effective_batch=(after["rows"] - before["rows"]) / max(executions, 1.0),
        median_s=float(np.median(spans)),
        high_s=float(np.quantile(spans, 0.95)),
        requests=len(spans),
    )
