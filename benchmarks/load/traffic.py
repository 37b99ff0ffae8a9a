"""Request bodies for the load, made beforehand so that the users only send.

They are the simulated feed's future requests (after the logged ones), with a share of new users, who have
no history, and of context values that no vocabulary holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

from triton_models.errors import BenchmarkError
from triton_models.files import write_atomically
from triton_models.surface import Surface

if TYPE_CHECKING:
    from benchmarks.feed.world import World

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Which requests, by rotation: reproducible, and exact in any long enough stretch."""

    k: int = 25
    new_user_every: int = 20
    unknown_context_every: int = 25


class Batch(Protocol):
    """What is needed of :class:`benchmarks.feed.requests.RequestBatch`."""

    @property
    def candidates(self) -> Any:
        """[n, C] item ids."""

    @property
    def request_id(self) -> Any:
        """[n]."""

    @property
    def user_id(self) -> Any:
        """[n]."""

    @property
    def cohort(self) -> Any:
        """[n]."""

    def state(self, row: int) -> dict[str, Any]:
        """One request state."""

    def __len__(self) -> int: ...


def request_bodies(batch: Batch, *, first: int, mix: Mix) -> Iterator[dict[str, Any]]:
    """Bodies of ``/v1/rank`` without ``control``."""
    for row in range(len(batch)):
        number = first + row
        state = batch.state(row)
        if number % mix.new_user_every == 0 and "history" in state:
            state["history"] = {"embedding": [], "action": [], "age_s": []}
        if number % mix.unknown_context_every == 1 and state.get("context"):
            state["context"][next(iter(state["context"]))] = "never-seen"
        yield {
            "request_id": str(batch.request_id[row]),
            "user_id": str(batch.user_id[row]),
            "cohort": batch.cohort[row],
            "state": state,
            "candidates": batch.candidates[row].tolist(),
            "k": mix.k,
        }


def write_traffic(logs: Path, path: Path, *, count: int, mix: Mix) -> Surface:
    """Write ``count`` bodies of the world behind ``logs``, one JSON object a line; returns its surface."""
    from benchmarks.feed.world import load_world

    world = load_world(logs)
    write_world_traffic(world, path, count=count, mix=mix)
    return world.surface


def write_world_traffic(world: World, path: Path, *, count: int, mix: Mix) -> None:
    """Write ``count`` bodies of a world's requests after its logged ones, one JSON object a line."""
    lines: list[bytes] = []
    for start in range(0, count, CHUNK):
        batch = world.requests(world.config.requests + start, min(CHUNK, count - start))
        lines += [orjson.dumps(body) for body in request_bodies(batch, first=start, mix=mix)]
    write_atomically(path, b"\n".join(lines) + b"\n")


@dataclass(frozen=True)
class Prepared:
    """One body, ready to be sent in each of its forms, and what is needed to check the answers."""

    rank_on: bytes
    rank_off: bytes
    weights: bytes
    candidates: frozenset[Any]
    expected_items: int
    line: bytes = b""
    """The body as it was written down."""


def prepare(line: bytes) -> Prepared:
    """Make the forms of one body: ranked with the control on, with it off, and weights only."""
    body = json.loads(line)
    whole = line.rstrip()[:-1]
    weights = {key: value for key, value in body.items() if key not in ("candidates", "k")}
    return Prepared(
        rank_on=whole + b',"control":true}',
        rank_off=whole + b',"control":false}',
        weights=orjson.dumps(weights),
        candidates=frozenset(body["candidates"]),
        expected_items=min(body["k"], len(body["candidates"])),
        line=line,
    )


REQUEST_ID = b'"request_id":"'


def numbered(body: bytes, number: int) -> bytes:
    """A body under an id of its own: what is sent twice under one id is one request to whoever reads the log.

    Exploration is a hash of the id, so a few bodies sent over and over draw a few times, and not a share of
    the requests; and of equal ids ``ray_train join`` keeps the first.
    """
    return body.replace(REQUEST_ID, b"%s%d-" % (REQUEST_ID, number), 1)


def as_tensors(line: bytes, surface: Surface, *, control: bool) -> tuple[bytes, int]:
    """A body in the Open Inference Protocol's binary form, and the length of its JSON header.

    The same request as in JSON: state, candidate ids, k (:mod:`serve.tensor_body`).
    """
    body = json.loads(line)
    state, history = body["state"], body["state"].get("history")
    tensors: list[tuple[str, str, list[int], bytes]] = [_floats("user_embedding", state["user_embedding"])]
    if history is not None and surface.state.history is not None:
        count = len(history["action"])
        width = surface.state.history.embedding
        embedding = np.asarray(history["embedding"], dtype="<f4").reshape(count, width)
        tensors.append(("history_embedding", "FP32", [count, width], embedding.tobytes()))
        tensors.append(_words("history_action", history["action"]))
        tensors.append(_floats("history_age_s", history["age_s"]))
    if surface.state.context:
        tensors.append(
            _words("context", [state["context"].get(name) or "" for name in surface.state.context])
        )
    ids = np.asarray(body["candidates"], dtype="<i8")
    tensors.append(("candidate_ids", "INT64", [len(ids)], ids.tobytes()))
    parameters = {name: body[name] for name in ("user_id", "cohort", "k") if body.get(name) is not None}
    header = orjson.dumps(
        {
            "id": body["request_id"],
            "parameters": parameters | {"control": control},
            "inputs": [
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": shape,
                    "parameters": {"binary_data_size": len(raw)},
                }
                for name, datatype, shape, raw in tensors
            ],
        }
    )
    return header + b"".join(raw for *_, raw in tensors), len(header)


def _floats(name: str, values: Any) -> tuple[str, str, list[int], bytes]:
    array = np.asarray(values, dtype="<f4")
    return name, "FP32", list(array.shape), array.tobytes()


def _words(name: str, words: list[str]) -> tuple[str, str, list[int], bytes]:
    encoded = [word.encode() for word in words]
    raw = b"".join(len(word).to_bytes(4, "little") + word for word in encoded)
    return name, "BYTES", [len(words)], raw


def read_traffic(path: Path) -> list[Prepared]:
    """Read what :func:`write_traffic` wrote.

    Raises:
        BenchmarkError: there is nothing in it.
    """
    prepared = [prepare(line) for line in path.read_bytes().splitlines() if line.strip()]
    if not prepared:
        raise BenchmarkError(f"{path}: holds no requests")
    return prepared
