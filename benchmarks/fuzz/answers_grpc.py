"""Spoilt answers over gRPC: protobuf messages, and protobuf itself as the other reader."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from benchmarks.fuzz.mutate import spoilt
from serve.clients import TritonRankerClient, TritonValueClient
from serve.grpc_wire import GrpcWire
from serve.wire import DTYPES, Output

Arrays = dict[str, npt.NDArray[Any]]
_T = TypeVar("_T")


class GrpcWay:
    """See :class:`benchmarks.fuzz.answers.Way`."""

    name = "gRPC"
    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.answer = b""

    def attach(self, client: TritonValueClient | TritonRankerClient) -> None:
        """See :class:`benchmarks.fuzz.answers.Way`."""
        if not isinstance(client.wire, GrpcWire):
            raise TypeError("the address is not of gRPC")
        client.wire.call = self._given

    async def _given(self, request: bytes, **_: Any) -> bytes:
        return self.answer

    def made(self, pick: random.Random, way: float, who: str, arrays: Arrays) -> tuple[str, bytes]:
        """An answer of gRPC: honest, or spoilt in its numbers, its description or its bytes."""
        message = service_pb2.ModelInferResponse(model_name=who, model_version="1")
        for name, array in arrays.items():
            datatype = "INT64" if array.dtype == np.int64 else "FP32"
            message.outputs.add(name=name, datatype=datatype, shape=array.shape)
            message.raw_output_contents.append(array.tobytes())
        if way < 0.1:
            return f"{who}: honest", message.SerializeToString()
        if way < 0.3:
            at = pick.randrange(len(arrays))
            message.raw_output_contents[at] = odd_numbers(pick, message.raw_output_contents[at])
            return f"{who}: numbers", message.SerializeToString()
        if way < 0.55:
            _misdescribe(pick, message)
            return f"{who}: message", message.SerializeToString()
        return f"{who}: bytes", spoilt(pick, message.SerializeToString(), [b"\x32\x04", b"\x2a", b"\x80" * 9])

    def read_plainly(self, answer: bytes, names: Sequence[str]) -> Arrays | None:
        """The arrays of an answer as protobuf and NumPy read them; None: they do not."""
        try:
            message = service_pb2.ModelInferResponse.FromString(answer)
            pairs = zip(message.outputs, message.raw_output_contents, strict=True)
            return arrays_of({t.name: (t.datatype, tuple(t.shape), raw) for t, raw in pairs}, names)
        except Exception:  # whatever it is, these bytes hold no such arrays
            return None

    def ended(self, call: Coroutine[Any, Any, _T]) -> _T:
        """The result of a coroutine that waits for nothing; no event loop, for thousands a second."""
        try:
            call.send(None)
        except StopIteration as done:
            result: _T = done.value
            return result
        call.close()
        raise RuntimeError("the call waits for something")


def arrays_of(found: Mapping[str, Output], names: Sequence[str]) -> Arrays:
    """Outputs as NumPy reads them; whatever it says where they are none."""
    return {
        name: np.frombuffer(raw, dtype=DTYPES[datatype]).reshape(shape)
        for name, (datatype, shape, raw) in ((name, found[name]) for name in names)
    }


def odd_numbers(pick: random.Random, raw: bytes) -> bytes:
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
