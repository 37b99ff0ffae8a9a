"""Scoring a log through the server that answers live requests: what the live requests notice.

One server, one live client with a request every 1 / rate seconds, whose latency counts from the moment the
request was due. Beside it a scorer in a process of its own: silent (*off*), as ``sweep --triton`` asks
(*paced*, :class:`ray_train.served_network.ServedNetwork`), or without any pace and with the largest batch
(*greedy*, the alternative). The three take turns in blocks; intervals are bootstrapped over turns.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from triton_models.errors import BenchmarkError
from triton_models.runs import Run
from triton_models.state_sample import load_states, with_even_scalarization
from triton_models.tensors import VALUE_NETWORK

FloatArray = npt.NDArray[np.float64]
Mode = Literal["off", "paced", "greedy"]
MODES: tuple[Mode, ...] = ("off", "paced", "greedy")
SETTLING_S = 0.5
GREEDY_ROWS = 64
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One block of one mode."""

    mode: Mode
    live_ms: tuple[float, ...]
    failures: int
    scored_rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One mode over all its turns."""

    mode: Mode
    requests: int
    failures: int
    p50_ms: float
    p99_ms: float
    rows_per_s: float
    p50_ratio: tuple[float, float, float]
    """Of the silent scorer's p50: the ratio, and its 95 % interval."""
    p99_ratio: tuple[float, float, float]


def check(*, rate: float, turns: int, turn_s: float) -> None:
    """Refuse numbers that give no percentiles.

    Raises:
        BenchmarkError: which ones.
    """
    if not (0 < rate <= 10_000 and 0 < turn_s <= 3600 and rate * turn_s >= 20 and turns >= 2):
        raise BenchmarkError(
            f"need at least 2 turns of at least 20 requests each, got {turns} turns of {turn_s:g} s at "
            f"{rate:g} requests a second"
        )


def measure(run: Run, repository: Path, *, rate: float, turns: int, turn_s: float) -> list[Turn]:
    """Serve the repository and take the turns.

    Raises:
        BenchmarkError: impossible numbers.
        ServerError: the server does not start.
    """
    from triton_models.remote import RemoteServer
    from triton_models.server import EmbeddedServer

    check(rate=rate, turns=turns, turn_s=turn_s)
    order = np.random.default_rng(0)
    found: list[Turn] = []
    with (
        EmbeddedServer(repository) as server,
        _scorer(server.grpc_address, run) as scorer,
        RemoteServer(server.grpc_address) as live,
    ):
        request = _live_request(run)
        _live(live, request, rate=rate, seconds=turn_s)
        for _ in range(turns):
            # At random, so that none always follows the same other one.
            for mode in (MODES[i] for i in order.permutation(len(MODES))):
                scorer.send(mode)
                time.sleep(SETTLING_S)
                scorer.send("count")
                before, began = scorer.recv(), time.monotonic()
                latencies, failures = _live(live, request, rate=rate, seconds=turn_s)
                seconds = time.monotonic() - began
                scorer.send("count")
                found.append(
                    Turn(
                        mode=mode,
                        live_ms=tuple(latencies),
                        failures=failures,
                        scored_rows=scorer.recv() - before,
                        seconds=seconds,
                    )
                )
    return found


def _live_request(run: Run) -> dict[str, Any]:
    states = load_states(run.surface, run.path)
    return with_even_scalarization(run.surface, {name: value[:1] for name, value in states.items()})


def _live(server: Any, request: dict[str, Any], *, rate: float, seconds: float) -> tuple[list[float], int]:
    latencies: list[float] = []
    failures = 0
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            server.infer(VALUE_NETWORK, request, ["weights", "action", "values"])
        except Exception:  # whatever it is, a live request failed
            failures += 1
        latencies.append((time.perf_counter() - due) * 1e3)
    return latencies, failures


@contextmanager
def _scorer(address: str, run: Run) -> Iterator[Connection]:
    """A process that scores the run's states over and over in the mode that it was told last."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_score, args=(theirs, address, run.path), daemon=True)
    process.start()
    try:
        if not ours.poll(60.0) or ours.recv() != "ready":
            raise BenchmarkError("the scoring process did not start")
        yield ours
    except (EOFError, BrokenPipeError) as error:
        raise BenchmarkError("the scoring process ended before its time") from error
    finally:
        with suppress(BrokenPipeError):
            ours.send("end")
        process.join(30.0)
        if process.is_alive():
            process.kill()


def _score(pipe: Connection, address: str, path: Path) -> None:
    import torch

    from ray_train.served_network import ServedNetwork
    from triton_models.runs import load_run

    run = load_run(path)
    states = load_states(run.surface, path)
    objectives, rows = len(run.surface.objectives), len(states["user_embedding"])
    networks = {
        "paced": ServedNetwork(address, objectives),
        "greedy": ServedNetwork(address, objectives, batch_rows=GREEDY_ROWS, share=1.0, sleep=lambda _: None),
    }
    for network in networks.values():
        network.require_run(run)
    mode, scored, start = "off", 0, 0
    pipe.send("ready")
    while True:
        if pipe.poll(None if mode == "off" else 0.0):
            told = pipe.recv()
            if told == "end":
                return
            if told == "count":
                pipe.send(scored)
            else:
                mode = told
            continue
        network = networks[mode]
        part = slice(start, start + network.batch_rows)
        state = {name: torch.from_numpy(value[part]) for name, value in states.items()}
        network.action_values(state)
        count = len(state["user_embedding"])
        scored, start = scored + count, (start + count) % rows


def summarize(turns: list[Turn], *, seed: int = 0) -> list[Summary]:
    """Percentiles by mode, and ratios to the silent scorer with intervals over turns."""
    by_mode = {mode: np.array([turn.live_ms for turn in turns if turn.mode == mode]) for mode in MODES}
    base = by_mode["off"]
    draws = np.random.default_rng(seed).integers(0, len(base), (RESAMPLES, len(base)))

    def ratio(mine: FloatArray, level: float) -> tuple[float, float, float]:
        def percentiles(some: FloatArray) -> FloatArray:
            return np.asarray(np.percentile(some[draws].reshape(RESAMPLES, -1), level, axis=1))

        low, high = np.quantile(percentiles(mine) / percentiles(base), [0.025, 0.975])
        return float(np.percentile(mine, level) / np.percentile(base, level)), float(low), float(high)

    summaries = []
    for mode, pooled in by_mode.items():
        mine = [turn for turn in turns if turn.mode == mode]
        summaries.append(
            Summary(
                mode=mode,
                requests=pooled.size,
                failures=sum(turn.failures for turn in mine),
                p50_ms=float(np.percentile(pooled, 50)),
                p99_ms=float(np.percentile(pooled, 99)),
                rows_per_s=sum(turn.scored_rows for turn in mine) / sum(turn.seconds for turn in mine),
                p50_ratio=ratio(pooled, 50),
                p99_ratio=ratio(pooled, 99),
            )
        )
    return summaries


def table(summaries: list[Summary]) -> str:
    """Markdown, for people and for RESULTS.md."""
    lines = [
        "| scorer | rows/s scored | live p50, ms | live p99, ms | p50 / off | p99 / off | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in summaries:
        ratios = [f"{r:.2f} [{low:.2f}, {high:.2f}]" for r, low, high in (one.p50_ratio, one.p99_ratio)]
        lines.append(
            f"| {one.mode} | {one.rows_per_s:,.0f} | {one.p50_ms:.2f} | {one.p99_ms:.2f} | {ratios[0]} | "
            f"{ratios[1]} | {one.failures} of {one.requests:,} |"
        )
    return "\n".join(lines) + "\n"
