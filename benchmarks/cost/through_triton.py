"""The choice through the real tritonserver: where the time of a call goes, and what a full queue does.

One gRPC client, one request at a time. The client's clock gives three parts: building the request, the
call, reading the answer. Triton's statistics (cumulative, read before and after each turn) give what the
call spent inside the server: queue, compute input, compute infer, compute output. What is left of the
call is transport: serialization on both sides, gRPC, the loopback. In the same turns the same ONNX file
runs in a session of this process, so that ``compute infer - session`` is what the Python backend adds
(its stub's process, the copies to it and back, and a session whose caches are colder than here).

All of it shares the machine's cores. No deadlines shorter than a minute, no cancellation: see FACTS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost.contestants import CHOICE, choice_inputs, new_session
from benchmarks.cost.networks import Subject
from benchmarks.cost.timed_client import CLIENT_PARTS, SERVER_PARTS, TimedClient
from benchmarks.cost.timing import Estimate, TimingSettings, difference, interleaved
from benchmarks.cost.under_load import Concurrency, under_load
from triton_models.errors import BenchmarkError
from triton_models.export import MAX_BATCH_SIZE
from triton_models.probe import import_grpc
from triton_models.repository import publish_model
from triton_models.served import input_rules
from triton_models.server import EmbeddedServer
from triton_models.tensors import input_specs, output_specs

PARTS = (
    "build request",
    "transport",
    "queue",
    "compute input",
    "session",
    "python backend",
    "compute output",
    "read answer",
)
"""Parts of a call in the order in which they happen; ``session`` is ONNX Runtime alone."""

PARTS_READ = (*CLIENT_PARTS, *SERVER_PARTS.values())


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Where the mean call's time goes at one batch size, in seconds."""

    subject: str
    batch: int
    calls: int
    median_s: float
    """Median of the whole, as the client sees it."""
    in_process_s: float
    """Median of the same ONNX file in a session of this process, in the same turns."""
    server_s: float
    """Queue and compute, as Triton's statistics have it."""
    backend: Estimate
    """Seconds that compute infer takes beyond the session in the same turns: Triton's Python stub."""
    parts_s: Mapping[str, float]
    """By name in :data:`PARTS`: the median turn's mean. The stub's part is a difference of two measured
    times, so on a noisy machine it may come out below zero."""


@dataclass(frozen=True, kw_only=True)
class ThroughTriton:
    """Everything that was measured through the server."""

    shares: tuple[Shares, ...]
    concurrency: tuple[Concurrency, ...]


def publish(
    repository: Path, subjects: tuple[Subject, ...], served: Mapping[str, bytes], threads: int
) -> None:
    """Every subject as a model of its own, named by its key, configured as ``value_network`` is."""
    for subject in subjects:
        publish_model(
            repository,
            name=subject.key,
            onnx_bytes=served[subject.key],
            inputs=input_specs(subject.surface),
            outputs=output_specs(subject.surface),
            max_batch_size=MAX_BATCH_SIZE,
            input_rules=input_rules(subject.surface),
            warmup_batch_sizes=(1, 8, MAX_BATCH_SIZE),
            intra_op_threads=threads,
        )


def measure_through_triton(
    subjects: tuple[Subject, ...],
    served: Mapping[str, bytes],
    folder: Path,
    *,
    batches: tuple[int, ...],
    threads: int,
    settings: TimingSettings,
    in_flight: tuple[int, ...] = (1, 16),
    load_s: float = 3.0,
    say: Callable[[str], None] = lambda text: None,
) -> ThroughTriton:
    """Start a server in ``folder``, measure every subject, and stop it.

    Raises:
        ServerError: the embedded server is missing or does not start.
        BenchmarkError: the server's answer is not that of the same file in this process.
    """
    repository = folder / "repository"
    publish(repository, subjects, served, threads)
    sizes = tuple(batch for batch in batches if batch <= MAX_BATCH_SIZE)
    with (
        EmbeddedServer(repository, log_path=folder / "triton.log") as server,
        closing(import_grpc().InferenceServerClient(server.grpc_address)) as connection,
    ):
        clients = {subject.key: TimedClient(connection, subject) for subject in subjects}
        shares: list[Shares] = []
        for batch in sizes:
            say(f"through Triton, batch {batch}")
            shares += _shares(subjects, clients, served, batch, threads, settings)
        load = []
        for subject in subjects:
            for count in in_flight:
                say(f"through Triton, {subject.label}, {count} in flight")
                load.append(under_load(subject, clients[subject.key], count, load_s))
    return ThroughTriton(shares=tuple(shares), concurrency=tuple(load))


def _shares(
    subjects: tuple[Subject, ...],
    clients: Mapping[str, TimedClient],
    served: Mapping[str, bytes],
    batch: int,
    threads: int,
    settings: TimingSettings,
) -> list[Shares]:
    calls: dict[str, Callable[[], object]] = {}
    turns: dict[str, list[dict[str, float]]] = {}
    before: dict[str, dict[str, float]] = {}
    for subject in subjects:
        client, arrays = clients[subject.key], choice_inputs(subject, batch)
        session = new_session(served[subject.key], threads=threads)
        _same_answer(client.choose(arrays), session.run(CHOICE, arrays), subject)
        calls[f"{subject.key} triton"] = lambda client=client, arrays=arrays: client.choose(arrays)  # type: ignore[misc]
        calls[f"{subject.key} session"] = lambda session=session, arrays=arrays: session.run(CHOICE, arrays)  # type: ignore[misc]
        turns[subject.key] = []

    def at_start(key: str) -> None:
        name, kind = key.rsplit(" ", 1)
        if kind == "triton":
            before[name] = {**clients[name].statistics(), **clients[name].spent}

    def at_end(key: str, count: int) -> None:
        name, kind = key.rsplit(" ", 1)
        if kind == "triton":
            now = {**clients[name].statistics(), **clients[name].spent}
            turns[name].append({part: (now[part] - before[name][part]) / count for part in now})

    times = interleaved(calls, settings, at_start=at_start, at_end=at_end)
    found = []
    for subject in subjects:
        whole, alone = times[f"{subject.key} triton"], times[f"{subject.key} session"]
        infer = [turn["compute infer"] for turn in turns[subject.key]]
        backend = difference(infer, alone.block_means_s)
        mean = {name: float(np.median([turn[name] for turn in turns[subject.key]])) for name in PARTS_READ}
        found.append(
            Shares(
                subject=subject.key,
                batch=batch,
                calls=whole.calls,
                median_s=whole.median_s,
                in_process_s=alone.median_s,
                server_s=sum(mean[name] for name in SERVER_PARTS.values()),
                backend=backend,
                parts_s=split_parts(mean, backend.value),
            )
        )
    return found


def _same_answer(answer: dict[str, Any], expected: list[Any], subject: Subject) -> None:
    same = np.allclose(answer["values"], expected[2], rtol=0.0, atol=1e-6)
    if not same or not np.array_equal(answer["action"], expected[1]):
        raise BenchmarkError(f"{subject.label}: Triton answers otherwise than the same file in this process")


def split_parts(mean: Mapping[str, float], backend_s: float) -> dict[str, float]:
    """Client's and server's parts, split so that they add up to a call."""
    inside = sum(mean[name] for name in SERVER_PARTS.values())
    found = {
        "build request": mean["build request"],
        "transport": mean["call"] - inside,
        "queue": mean["queue"],
        "compute input": mean["compute input"],
        "session": mean["compute infer"] - backend_s,
        "python backend": backend_s,
        "compute output": mean["compute output"],
        "read answer": mean["read answer"],
    }
    return {name: found[name] for name in PARTS}
