"""Callers of a real sidecar: some connections, each asking again when it was answered, every answer kept."""

from __future__ import annotations

import http.client
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from benchmarks.feed.requests import RequestBatch
from triton_models.errors import BenchmarkError

Route = Literal["weights", "rank"]

TIMEOUT_S = 30.0
CHUNK = 512


@dataclass(frozen=True)
class Answered:
    """One answer and when it came, microseconds since the epoch."""

    answer: dict[str, Any]
    at_us: int


def body(batch: RequestBatch, row: int, route: Route, k: int) -> bytes:
    """The request body of a row."""
    data: dict[str, Any] = {
        "request_id": str(batch.request_id[row]),
        "user_id": str(batch.user_id[row]),
        "cohort": str(batch.cohort[row]),
        "state": batch.state(row),
    }
    if route == "rank":
        data |= {"candidates": batch.candidates[row].tolist(), "k": k}
    return orjson.dumps(data)


def ask_all(
    address: str,
    batches: Iterator[RequestBatch],
    *,
    route: Route,
    k: int,
    callers: int,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[RequestBatch, list[Answered]]]:
    """Send every request of the batches; the answers, batch by batch.

    Raises:
        BenchmarkError: an answer that is not 200; its text.
    """
    host = urllib.parse.urlsplit(address)
    connections = [
        http.client.HTTPConnection(host.hostname or "", host.port, timeout=TIMEOUT_S) for _ in range(callers)
    ]

    def ask(connection: http.client.HTTPConnection, bodies: Sequence[bytes]) -> list[Answered]:
        return [_ask(connection, f"/v1/{route}", data) for data in bodies]

    with ThreadPoolExecutor(callers) as pool:
        try:
            for batch in batches:
                bodies = [body(batch, row, route, k) for row in range(len(batch))]
                parts = list(pool.map(ask, connections, [bodies[i::callers] for i in range(callers)]))
                answers: list[Answered] = [parts[i % callers][i // callers] for i in range(len(bodies))]
                progress(len(answers))
                yield batch, answers
        finally:
            for connection in connections:
                connection.close()


def _ask(connection: http.client.HTTPConnection, path: str, data: bytes) -> Answered:
    try:
        connection.request("POST", path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"the sidecar did not answer: {error!r}") from error
    if response.status != 200:
        raise BenchmarkError(f"the sidecar answered {response.status}: {text[:300].decode(errors='replace')}")
    return Answered(orjson.loads(text), time.time_ns() // 1000)
