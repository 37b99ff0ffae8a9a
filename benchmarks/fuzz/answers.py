"""Answers of the value network and of the ranker, spoilt, against the sidecar's real clients.

What stands in is the wire alone: the clients are made as in the sidecar, one of either way that there is
(:mod:`benchmarks.fuzz.answers_grpc`, :mod:`benchmarks.fuzz.answers_http`), and get bytes for an answer. Each
case has to end in an :class:`UpstreamError`, or in exactly the numbers that another reader finds in these
bytes, and weights that are believed have to be those of the action that the answer names. The clients keep
what they learned of earlier answers (layouts, open connections), so one spoilt answer could also spoil the
next: they live as long as the run, and every tenth answer is an honest one that must be read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from benchmarks.fuzz.answers_grpc import Arrays, GrpcWay
from benchmarks.fuzz.answers_http import HttpWay
from benchmarks.fuzz.cases import Verdict, fault
from serve.clients import VALUE_OUTPUTS, TritonRankerClient, TritonValueClient, ValueQuestion
from serve.config import RankerConfig, ValueNetworkConfig
from serve.decide import ValueAnswer, decide
from triton_models.errors import UpstreamError
from triton_models.surface import Surface
from triton_models.tensors import state_specs

MOST_ROWS, MOST_CANDIDATES = 3, 6
CLOSE = 2e-4
"""More than float32 rounds, less than two grid values differ."""

_T = TypeVar("_T")


class Way(Protocol):
    """How answers come: their bytes, how they are spoilt, and who else reads them."""

    name: str
    address: str
    """Never connected to."""
    answer: bytes
    """What the next call gets."""

    def attach(self, client: TritonValueClient | TritonRankerClient) -> None:
        """Put this in the place of the client's connection."""

    def made(self, pick: random.Random, way: float, who: str, arrays: Arrays) -> tuple[str, bytes]:
        """What kind of answer, and its bytes."""

    def read_plainly(self, answer: bytes, names: Sequence[str]) -> Arrays | None:
        """The arrays of an answer as others read them; None: they do not."""

    def ended(self, call: Coroutine[Any, Any, _T]) -> _T:
        """The result of a call."""


class Talk:
    """A way, and both clients that use it."""

    def __init__(self, way: Way, value: TritonValueClient, ranker: TritonRankerClient) -> None:
        self.way, self.value, self.ranker = way, value, ranker
        way.attach(value)
        way.attach(ranker)


class Answers:
    """Cases of both clients, either way."""

    def __init__(self, surface: Surface, talks: Sequence[Talk]) -> None:
        self._surface = surface
        self._talks = talks
        self._tensors = {s.name: np.zeros(s.shape, s.dtype) for s in state_specs(surface)}
        self._lambda_M = surface.scalarization([1.0] * len(surface.objectives))

    def case(self, pick: random.Random) -> Verdict:
        """One answer to one client."""
        ask = pick.choice([self._ask_value_network, self._ask_ranker])
        return ask(pick, pick.choice(self._talks), pick.random())

    # ------------------------------------------------------------------ the value network

    def _ask_value_network(self, pick: random.Random, talk: Talk, spoil: float) -> Verdict:
        rows = pick.choice([1, 1, pick.randint(1, MOST_ROWS)])
        action_R = [pick.randrange(self._surface.num_actions) for _ in range(rows)]
        values = [[pick.random() for _ in self._surface.objectives] for _ in range(rows)]
        arrays: Arrays = {
            "weights": self._surface.actions[action_R].astype(np.float32),
            "action": np.array(action_R, dtype=np.int64)[:, None],
            "values": np.array(values, dtype=np.float32),
        }
        way = talk.way
        kind, way.answer = way.made(pick, spoil, f"value network, {way.name}", arrays)
        question = ValueQuestion(self._tensors, self._lambda_M, {})
        try:
            given = way.ended(talk.value.choose_many([question] * rows))
        except Exception as error:
            return _refused(kind, way.answer, error)
        plain = way.read_plainly(way.answer, VALUE_OUTPUTS)
        if plain is None or len(given) != rows:
            return Verdict(kind=kind, outcome="answered", finding=f"{kind}: believed {way.answer!r}")
        wrong = next(filter(None, map(self._wrong, given, range(rows), [plain] * rows)), None)
        outcome = "answered" if all(decide(self._surface, a).reason is None for a in given) else "fallback"
        return Verdict(kind=kind, outcome=outcome, finding=wrong and f"{kind}: {wrong}: {way.answer!r}")

    def _wrong(self, given: ValueAnswer, row: int, plain: Arrays) -> str | None:
        """What is wrong with one of the answers, against what its bytes say."""
        action = int(plain["action"].ravel()[row])
        same = given.action == action and all(
            np.asarray(mine).tobytes() == plain[name][row].tobytes()
            for name, mine in (("weights", given.weights_W), ("values", given.values_M))
        )
        if not same:
            return "read as something that it does not say"
        decision = decide(self._surface, given)
        if decision.source != "value_network":
            kept = np.array_equal(decision.weights_W, self._surface.production)
            return None if kept else "not believed, and no production weights"
        known = 0 <= action < self._surface.num_actions and bool(np.isfinite(given.values_M).all())
        if not known or not np.allclose(
            given.weights_W, self._surface.actions[action], rtol=CLOSE, atol=CLOSE
        ):
            return "believed though it contradicts itself"
        return None

    # ------------------------------------------------------------------ the ranker

    def _ask_ranker(self, pick: random.Random, talk: Talk, spoil: float) -> Verdict:
        shape = (pick.randint(1, MOST_CANDIDATES), len(self._surface.heads))
        scores = np.array([pick.random() for _ in range(shape[0] * shape[1])], dtype=np.float32)
        way = talk.way
        arrays: Arrays = {"scores": scores.reshape(1, *shape)}
        kind, way.answer = way.made(pick, spoil, f"ranker, {way.name}", arrays)
        try:
            given = way.ended(talk.ranker.score(self._tensors, list(range(shape[0])), {}))
        except Exception as error:
            return _refused(kind, way.answer, error)
        plain = way.read_plainly(way.answer, ("scores",))
        honest = (
            plain is not None
            and given.shape == shape
            and given.tobytes() == plain["scores"].tobytes()
            and bool(np.isfinite(given).all())
        )
        finding = None if honest else f"{kind}: scores that the answer does not say: {way.answer!r}"
        return Verdict(kind=kind, outcome="answered", finding=finding)


def _refused(kind: str, answer: bytes, error: Exception) -> Verdict:
    wrong = fault(error) if isinstance(error, UpstreamError) else f"no UpstreamError: {error!r}"
    if kind.endswith("honest"):
        wrong = f"an honest answer is refused: {error}"
    finding = wrong and f"{kind}: {wrong}: {answer!r}"
    return Verdict(kind=kind, outcome=type(error).__name__, finding=finding)


@contextmanager
def answers(surface: Surface) -> Iterator[Answers]:
    """The cases, over clients that are never connected."""
    loop = asyncio.new_event_loop()
    ways: tuple[Way, ...] = (GrpcWay(), HttpWay(loop))

    async def made(way: Way) -> Talk:
        value = TritonValueClient(surface, ValueNetworkConfig(addresses=(way.address,)), way.address)
        ranker = TritonRankerClient(surface, RankerConfig(addresses=(way.address,)), way.address)
        return Talk(way, value, ranker)

    talks = [loop.run_until_complete(made(way)) for way in ways]
    try:
        yield Answers(surface, talks)
    finally:
        for talk in talks:
            for client in (talk.value, talk.ranker):
                loop.run_until_complete(client.close())
        loop.close()
