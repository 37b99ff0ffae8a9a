"""Answers of the value network and of the ranker, spoilt, against the sidecar's real clients.

What stands in is the wire alone: the clients are made as in the sidecar and get bytes for an answer. Each
case has to end in an :class:`UpstreamError`, or in exactly the numbers that protobuf itself finds in these
bytes, and weights that are believed have to be those of the action that the answer names. The clients keep
the layouts of earlier answers (:mod:`serve.answer_layout`), so one spoilt answer could also spoil the next:
they live as long as the run, and every tenth answer is an honest one that must be read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from benchmarks.fuzz.cases import Verdict, fault
from benchmarks.fuzz.mutate import spoilt
from serve.clients import VALUE_OUTPUTS, TritonRankerClient, TritonValueClient, ValueQuestion
from serve.config import RankerConfig, ValueNetworkConfig
from serve.decide import ValueAnswer, decide
from serve.grpc_wire import GrpcWire
from serve.wire import DTYPES
from triton_models.errors import UpstreamError
from triton_models.surface import Surface
from triton_models.tensors import state_specs

NOBODY = "127.0.0.1:1"
"""Never connected to."""

MOST_ROWS, MOST_CANDIDATES = 3, 6
CLOSE = 2e-4
"""More than float32 rounds, less than two grid values differ."""

Arrays = dict[str, npt.NDArray[Any]]
_T = TypeVar("_T")


def driven(call: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine that waits for nothing; no event loop, for thousands a second."""
    try:
        call.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    call.close()
    raise RuntimeError("the call waits for something")


def read_plainly(answer: bytes, names: tuple[str, ...]) -> Arrays | None:
    """The arrays of an answer as protobuf and NumPy read them; None: they do not."""
    try:
        message = service_pb2.ModelInferResponse.FromString(answer)
        pairs = zip(message.outputs, message.raw_output_contents, strict=True)
        found = {t.name: (t.datatype, tuple(t.shape), raw) for t, raw in pairs}
        tensors = {name: found[name] for name in names}
        return {
            name: np.frombuffer(raw, dtype=DTYPES[datatype]).reshape(shape)
            for name, (datatype, shape, raw) in tensors.items()
        }
    except Exception:  # whatever it is, these bytes hold no such arrays
        return None


class Answers:
    """Cases of both clients."""

    def __init__(self, surface: Surface, value: TritonValueClient, ranker: TritonRankerClient) -> None:
        self._surface = surface
        self._value, self._ranker = value, ranker
        self._answer = b""
        for client in (value, ranker):
            assert isinstance(client.wire, GrpcWire)  # noqa: S101
            client.wire.call = self._given
        self._tensors = {s.name: np.zeros(s.shape, s.dtype) for s in state_specs(surface)}
        self._lambda_M = surface.scalarization([1.0] * len(surface.objectives))

    async def _given(self, request: bytes, **_: Any) -> bytes:
        return self._answer

    def case(self, pick: random.Random) -> Verdict:
        """One answer to one client."""
        ask = pick.choice([self._ask_value_network, self._ask_ranker])
        return ask(pick, pick.random())

    # ------------------------------------------------------------------ the value network

    def _ask_value_network(self, pick: random.Random, way: float) -> Verdict:
        rows = pick.choice([1, 1, pick.randint(1, MOST_ROWS)])
        action_R = [pick.randrange(self._surface.num_actions) for _ in range(rows)]
        values = [[pick.random() for _ in self._surface.objectives] for _ in range(rows)]
        arrays: Arrays = {
            "weights": self._surface.actions[action_R].astype(np.float32),
            "action": np.array(action_R, dtype=np.int64)[:, None],
            "values": np.array(values, dtype=np.float32),
        }
        kind, self._answer = _made(pick, way, "value network", arrays)
        question = ValueQuestion(self._tensors, self._lambda_M, {})
        try:
            given = driven(self._value.choose_many([question] * rows))
        except Exception as error:
            return self._refused(kind, error)
        plain = read_plainly(self._answer, VALUE_OUTPUTS)
        if plain is None or len(given) != rows:
            return Verdict(kind=kind, outcome="answered", finding=f"{kind}: believed {self._answer!r}")
        wrong = next(filter(None, map(self._wrong, given, range(rows), [plain] * rows)), None)
        outcome = "answered" if all(decide(self._surface, a).reason is None for a in given) else "fallback"
        return Verdict(kind=kind, outcome=outcome, finding=wrong and f"{kind}: {wrong}: {self._answer!r}")

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

    def _ask_ranker(self, pick: random.Random, way: float) -> Verdict:
        shape = (pick.randint(1, MOST_CANDIDATES), len(self._surface.heads))
        scores = np.array([pick.random() for _ in range(shape[0] * shape[1])], dtype=np.float32)
        kind, self._answer = _made(pick, way, "ranker", {"scores": scores.reshape(1, *shape)})
        try:
            given = driven(self._ranker.score(self._tensors, list(range(shape[0])), {}))
        except Exception as error:
            return self._refused(kind, error)
        plain = read_plainly(self._answer, ("scores",))
        honest = (
            plain is not None
            and given.shape == shape
            and given.tobytes() == plain["scores"].tobytes()
            and bool(np.isfinite(given).all())
        )
        finding = None if honest else f"{kind}: scores that the answer does not say: {self._answer!r}"
        return Verdict(kind=kind, outcome="answered", finding=finding)

    def _refused(self, kind: str, error: Exception) -> Verdict:
        wrong = fault(error) if isinstance(error, UpstreamError) else f"no UpstreamError: {error!r}"
        if kind.endswith("honest"):
            wrong = f"an honest answer is refused: {error}"
        finding = wrong and f"{kind}: {wrong}: {self._answer!r}"
        return Verdict(kind=kind, outcome=type(error).__name__, finding=finding)


@contextmanager
def answers(surface: Surface) -> Iterator[Answers]:
    """The cases, over clients that are never connected."""
    loop = asyncio.new_event_loop()

    async def made() -> tuple[TritonValueClient, TritonRankerClient]:
        value = TritonValueClient(surface, ValueNetworkConfig(addresses=(NOBODY,)), NOBODY)
        return value, TritonRankerClient(surface, RankerConfig(addresses=(NOBODY,)), NOBODY)

    clients = loop.run_until_complete(made())
    try:
        yield Answers(surface, *clients)
    finally:
        for client in clients:
            loop.run_until_complete(client.close())
        loop.close()


# ---------------------------------------------------------------------- answers and how they are spoilt


def _made(pick: random.Random, way: float, who: str, arrays: Arrays) -> tuple[str, bytes]:
    message = service_pb2.ModelInferResponse(model_name=who, model_version="1")
    for name, array in arrays.items():
        datatype = "INT64" if array.dtype == np.int64 else "FP32"
        message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    if way < 0.1:
        return f"{who}: honest", message.SerializeToString()
    if way < 0.3:
        at = pick.randrange(len(arrays))
        message.raw_output_contents[at] = _odd_numbers(pick, message.raw_output_contents[at])
        return f"{who}: numbers", message.SerializeToString()
    if way < 0.55:
        _misdescribe(pick, message)
        return f"{who}: message", message.SerializeToString()
    return f"{who}: bytes", spoilt(pick, message.SerializeToString(), [b"\x32\x04", b"\x2a", b"\x80" * 9])


def _odd_numbers(pick: random.Random, raw: bytes) -> bytes:
    """The same length, so that the kept layout fits and the numbers themselves are looked at."""
    out = bytearray(raw)
    at = pick.randrange(0, len(out), 4)
    odd = [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 4, b"\x00" * 4, pick.randbytes(4)]
    out[at : at + 4] = pick.choice(odd)
    return bytes(out)


def _misdescribe(pick: random.Random, message: Any) -> None:
    """Change what a message says of its tensors, or how many there are."""
    tensor = pick.choice(list(message.outputs))
    way = pick.randrange(7)
    if way == 0:
        tensor.datatype = pick.choice([*DTYPES, "BYTES", "", "FP31"])
    elif way == 1:
        tensor.shape[pick.randrange(len(tensor.shape))] = pick.choice([-1, 0, 1, 2, 2**31, 2**62])
    elif way == 2:
        tensor.shape.extend(pick.choice([[1], [2], [-1, -1], [1] * 40]))
    elif way == 3:
        tensor.name = pick.choice(["", "weights", "action", "values", "scores", "x"])
    elif way == 4:
        message.raw_output_contents.append(pick.choice([b"", b"\x00" * 4]))
    elif way == 5:
        del message.raw_output_contents[-1:]
    else:
        del message.outputs[-1:]
        del message.raw_output_contents[-1:]
