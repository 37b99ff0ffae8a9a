"""The stand-ins' gRPC server: KServe v2 with Triton's own protocol definitions, one event loop.

What it is told arrives as JSON lines on standard input (:class:`~benchmarks.stand_ins.behaviour.Behaviour`),
each acknowledged with a line; the end of the input ends the server, so it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.stand_ins.behaviour import (
    Arrays,
    Behaviour,
    injected_ms,
    ranker_answer,
    replayed_ms,
    value_answer,
)
from triton_models.errors import BenchmarkError
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK

Kind = Literal["ranker", "value_network"]

DATATYPES = {"f4": "FP32", "i8": "INT64"}
MAX_BATCH_SIZE = 64
"""As the exporter writes it."""
VERSION = "1"
CANDIDATES = "candidate_ids"
STATE = "user_embedding"


@dataclass(kw_only=True)
class StandIn:
    """One model, and how it behaves now."""

    kind: Kind
    surface: Surface
    behaviour: Behaviour

    def parameters(self) -> dict[str, str]:
        """What the exporter writes into ``config.pbtxt``."""
        return {
            "surface": json.dumps(self.surface.to_dict()),
            "surface_fingerprint": self.surface.fingerprint,
            "run_id": "stand-in",
        }

    def answer(self, inputs: Mapping[str, tuple[tuple[int, ...], bytes]]) -> tuple[Arrays, bytes]:
        """Arrays to send, and what the request is recognised by."""
        if self.kind == "ranker":
            shape, key = inputs.get(CANDIDATES, ((1, 0), b""))
            heads = len(self.surface.heads)
            return ranker_answer(self.behaviour.mode, count=shape[-1], heads=heads), key
        shape, key = inputs.get(STATE, ((1,), b""))
        return value_answer(self.behaviour.mode, self.surface, key, rows=shape[0]), key


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The calls that the sidecar, Triton's client and a probe make."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self._ready: dict[tuple[Any, ...], Any] = {}

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Alive."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Ready."""
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Ready, whatever the mode: so it is with a Triton whose model's process is dead."""
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Name and parameters."""
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = MAX_BATCH_SIZE
        response.config.version_policy.specific.versions.append(int(VERSION))
        for name, value in self.stand_in.parameters().items():
            response.config.parameters[name].string_value = value
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Wait as told, then answer as told."""
        behaviour = self.stand_in.behaviour
        tensors = zip(request.inputs, request.raw_input_contents, strict=False)
        inputs = {tensor.name: (tuple(tensor.shape), raw) for tensor, raw in tensors}
        arrays, key = self.stand_in.answer(inputs) if behaviour.mode != "honest" else ({}, b"")
        response = self._honest(request, inputs) if behaviour.mode == "honest" else None
        if response is not None:
            key = inputs.get(CANDIDATES if self.stand_in.kind == "ranker" else STATE, ((), b""))[1]
        wait_ms = replayed_ms(behaviour, key) + injected_ms(_tracestate(context))
        if wait_ms > 0:
            await asyncio.sleep(wait_ms / 1e3)
        if behaviour.mode == "silent":
            await asyncio.sleep(3600.0)
        if behaviour.mode == "error":
            await context.abort(grpc.StatusCode.INTERNAL, "the stand-in was told to fail")
        return response if response is not None else _response(request, arrays)

    def _honest(self, request: Any, inputs: Mapping[str, tuple[tuple[int, ...], bytes]]) -> Any:
        """Honest answers of a ranker depend on the number of candidates only: made once each."""
        if self.stand_in.kind != "ranker":
            return _response(request, self.stand_in.answer(inputs)[0])
        shape = inputs.get(CANDIDATES, ((1, 0), b""))[0]
        if shape not in self._ready:
            self._ready[shape] = _response(request, self.stand_in.answer(inputs)[0])
        return self._ready[shape]


def _tracestate(context: Any) -> str:
    metadata = context.invocation_metadata() or ()
    return next((value for key, value in metadata if key == "tracestate" and isinstance(value, str)), "")


def _response(request: Any, arrays: Arrays) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=VERSION)
    for name, array in arrays.items():
        output = response.outputs.add()
        output.name = name
        output.datatype = DATATYPES[f"{array.dtype.kind}{array.dtype.itemsize}"]
        output.shape.extend(array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


async def serve(stand_in: StandIn, address: str) -> None:
    """Serve until standard input ends.

    Raises:
        BenchmarkError: the address cannot be bound.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(stand_in), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise BenchmarkError(f"{address} cannot be bound: {error}") from error
    await server.start()
    _tell({"address": f"{address.rpartition(':')[0]}:{port}", "model": _model(stand_in.kind)})
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            changes = json.loads(line)
            stand_in.behaviour = replace(Behaviour.parse(changes))
            _tell({"ok": True})
        except (ValueError, BenchmarkError) as error:
            _tell({"ok": False, "error": str(error)})
    with contextlib.suppress(asyncio.CancelledError):
        await server.stop(grace=None)


def _model(kind: Kind) -> str:
    return VALUE_NETWORK if kind == "value_network" else "ranker"


def _tell(data: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()
