"""Simulated traffic through the real sidecar: requests out, answers back, engagement events written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from benchmarks.loop.callers import CHUNK, Answered, Route, ask_all
from benchmarks.loop.engagement import engagement_events, slates_of_items
from benchmarks.loop.truth import Truth
from triton_models.errors import BenchmarkError

LOG_TIMEOUT_S = 120.0


@dataclass
class Sent:
    """What was sent and what came back."""

    requests: int = 0
    events: int = 0
    seconds: float = 0.0
    sources: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    began_us: int = 0
    ended_us: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "requests": self.requests,
            "requests_per_s": round(self.requests / max(self.seconds, 1e-9), 1),
            "events": self.events,
            "sources": dict(self.sources),
            "reasons": dict(self.reasons),
            "arms": dict(self.arms),
        }


def send(
    world: World,
    address: str,
    *,
    first: int,
    count: int,
    route: Route,
    callers: int,
    events: Path,
    seed: int,
    treatment: str | None = None,
    progress: Callable[[int], None],
) -> tuple[Sent, Truth]:
    """Requests ``first .. first + count - 1`` of the feed, and one file of events for each chunk.

    Args:
        world: the feed.
        address: the sidecar.
        first: number of the first request.
        count: how many.
        route: what is asked.
        callers: connections.
        events: folder for the events.
        seed: of the events' delays.
        treatment: arm whose truth is added up.
        progress: told of each chunk's requests.

    Raises:
        BenchmarkError: an answer is not 200, or not one of the feed.
    """
    sent, truth = Sent(began_us=time.time_ns() // 1000), Truth(world)
    events.mkdir(parents=True, exist_ok=True)
    answers = ask_all(
        address,
        _batches(world, first, count),
        route=route,
        k=world.config.k,
        callers=callers,
        progress=progress,
    )
    begin = time.monotonic()
    for batch, answered in answers:
        slate = _slates(world, batch, answered, route)
        at_us = np.array([one.at_us for one in answered])
        table = engagement_events(world, batch, slate, at_us, seed=seed)
        parquet.write_table(table, events / f"part-{batch.first:09d}.parquet")
        _count(sent, answered, table.num_rows)
        if treatment is not None:
            treated = np.array([one.answer.get("arm") == treatment for one in answered])
            truth.add(batch, _weights(world, answered), treated)
    sent.seconds = time.monotonic() - begin
    sent.ended_us = time.time_ns() // 1000
    return sent, truth


def _batches(world: World, first: int, count: int) -> Iterator[RequestBatch]:
    for start in range(first, first + count, CHUNK):
        yield world.requests(start, min(CHUNK, first + count - start))


def _weights(world: World, answered: list[Answered]) -> Any:
    heads = world.surface.controlled_heads
    return np.array([[one.answer["weights"][head] for head in heads] for one in answered], dtype=np.float64)


def _slates(world: World, batch: RequestBatch, answered: list[Answered], route: Route) -> Any:
    if route == "rank":
        return slates_of_items(batch, [one.answer["items"] for one in answered])
    return world.slates(batch, _weights(world, answered))


def _count(sent: Sent, answered: list[Answered], events: int) -> None:
    sent.requests += len(answered)
    sent.events += events
    for one in answered:
        sent.sources[str(one.answer["source"])] += 1
        sent.arms[str(one.answer.get("arm"))] += 1
        if one.answer["reason"] is not None:
            sent.reasons[str(one.answer["reason"])] += 1


def wait_for_log(folder: Path, rows: int) -> int:
    """Wait until the decision log's segments hold at least so many rows; how many they hold.

    Raises:
        BenchmarkError: they do not come.
    """
    deadline = time.monotonic() + LOG_TIMEOUT_S
    while True:
        found: int = sum(
            parquet.read_metadata(file).num_rows
            for file in folder.rglob("*.parquet")
            if not any(part.startswith(("_", ".")) for part in file.relative_to(folder).parts)
        )
        if found >= rows:
            return found
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"{folder}: {found:,} of {rows:,} decisions are in segments after {LOG_TIMEOUT_S:.0f} s"
            )
        time.sleep(0.5)


def instant(microseconds: int) -> str:
    """A moment as the doors read it."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()
