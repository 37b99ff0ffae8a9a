"""The gRPC adapters against a server that records what it is sent. No Ray, no Triton."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serve.clients import TritonRankerClient, TritonValueClient, ValueQuestion
from serve.config import RankerConfig, ValueNetworkConfig
from tests.unit.serve.support import STATE, SURFACE
from triton_models.encoding import encode_state
from triton_models.errors import UpstreamInvalidError, UpstreamUnavailableError

TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.code: grpc.StatusCode | None = None
        self.outputs: dict[str, np.ndarray] = {}

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.code is not None:
            await context.abort(self.code, "as told")
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, array in self.outputs.items():
            kind = "INT64" if array.dtype == np.int64 else "FP32"
            answer.outputs.add(name=name, datatype=kind, shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


async def serving(recorder: Recorder) -> tuple[Any, str]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


GOOD = {
    "weights": np.array([[105.0, 15.5]], dtype=np.float32),
    "action": np.array([[4]]),
    "values": np.array([[0.1, 0.2]], dtype=np.float32),
}


def test_value_client() -> None:
    async def main() -> None:
        recorder = Recorder()
        recorder.outputs = GOOD
        server, address = await serving(recorder)
        client = TritonValueClient(SURFACE, ValueNetworkConfig(addresses=(address,)), address)
        tensors = encode_state(SURFACE, STATE)
        answer = await client.choose(tensors, np.array([0.8, 0.2]), TRACE)
        assert (answer.action, answer.weights_W.tolist()) == (4, [105.0, 15.5])
        assert recorder.metadata[0]["traceparent"] == TRACE["traceparent"]
        assert [t.name for t in recorder.requests[0].outputs] == ["weights", "action", "values"]
        assert [t.name for t in recorder.requests[0].inputs][-1] == "scalarization"
        for outputs in ({}, {**GOOD, "action": np.array([[1], [2]])}):
            recorder.outputs = outputs
            with pytest.raises(UpstreamInvalidError):
                await client.choose(tensors, np.array([0.8, 0.2]), {})
        recorder.code = grpc.StatusCode.INTERNAL
        with pytest.raises(UpstreamUnavailableError):
            await client.choose(tensors, np.array([0.8, 0.2]), {})
        await server.stop(None)
        with pytest.raises(UpstreamUnavailableError):
            await client.parameters()
        await client.close()

    asyncio.run(main())


def test_several_states_in_one_call() -> None:
    async def main() -> None:
        recorder = Recorder()
        recorder.outputs = {
            "weights": np.array([[105.0, 15.5], [10.0, 1.0]], dtype=np.float32),
            "action": np.array([[4], [0]]),
            "values": np.array([[0.1, 0.2], [0.3, 0.4]], dtype=np.float32),
        }
        server, address = await serving(recorder)
        client = TritonValueClient(SURFACE, ValueNetworkConfig(addresses=(address,)), address)
        states = [STATE, {**STATE, "user_embedding": [1.0, 2.0, 3.0, 4.0]}]
        encoded = [encode_state(SURFACE, state) for state in states]
        lambdas = [np.array([0.8, 0.2]), np.array([0.1, 0.9])]
        asked = [ValueQuestion(t, lam, TRACE) for t, lam in zip(encoded, lambdas, strict=True)]
        first, second = await client.choose_many(asked)
        assert (first.action, first.weights_W.tolist()) == (4, [105.0, 15.5])
        assert (second.action, second.values_M.tolist()) == (0, pytest.approx([0.3, 0.4]))
        assert "traceparent" not in recorder.metadata[0], "it would be one of two"
        request = recorder.requests[0]
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            assert tensor.shape[0] == 2
            if tensor.name == "scalarization":
                assert np.frombuffer(raw, np.float32).tolist() == pytest.approx([0.8, 0.2, 0.1, 0.9])
            else:
                expected = b"".join(tensors[tensor.name].tobytes() for tensors in encoded)
                assert raw == expected
        recorder.outputs = GOOD
        with pytest.raises(UpstreamInvalidError, match="expected 2 answers"):
            await client.choose_many(asked)
        await client.close()
        await server.stop(None)

    asyncio.run(main())


def test_ranker_client() -> None:
    async def main() -> None:
        recorder = Recorder()
        server, address = await serving(recorder)
        tensors = encode_state(SURFACE, STATE)
        for batched in (True, False):
            config = RankerConfig(addresses=(address,), candidates_type="BYTES", batched=batched)
            client = TritonRankerClient(SURFACE, config, address)
            scores = np.arange(8, dtype=np.float32).reshape((1, 2, 4) if batched else (2, 4))
            recorder.outputs = {"scores": scores}
            got = await client.score(tensors, ["a", "ü"], TRACE)
            np.testing.assert_array_equal(got, np.arange(8).reshape(2, 4))
            assert recorder.metadata[-1]["traceparent"] == TRACE["traceparent"]
            shapes = {t.name: list(t.shape) for t in recorder.requests[-1].inputs}
            front = [1] if batched else []
            assert shapes == {
                "user_embedding": [*front, 4],
                "context": [*front, 2],
                "candidate_ids": [*front, 2],
            }
            recorder.outputs = {"scores": np.full_like(scores, np.nan)}
            with pytest.raises(UpstreamInvalidError, match="NaN"):
                await client.score(tensors, ["a", "b"], {})
            with pytest.raises(UpstreamInvalidError, match="shape"):
                await client.score(tensors, ["a", "b", "c"], {})
            await client.close()
        await server.stop(None)

    asyncio.run(main())


def test_features_of_the_candidates_reach_the_ranker() -> None:
    async def main() -> None:
        recorder = Recorder()
        recorder.outputs = {"scores": np.zeros((1, 2, 4), dtype=np.float32)}
        server, address = await serving(recorder)
        inputs = {"age": {"datatype": "FP32"}, "vector": {"datatype": "FP16", "shape": [3]}}
        config = RankerConfig.model_validate({"addresses": [address], "candidate_inputs": inputs})
        client = TritonRankerClient(SURFACE, config, address)
        age, vector = np.arange(2, dtype=np.float32), np.arange(6, dtype=np.float16)
        features = {"age": memoryview(age.tobytes()), "vector": memoryview(vector.tobytes())}
        await client.score(encode_state(SURFACE, STATE), [1, 2], {}, features)
        sent = recorder.requests[0]
        described = {t.name: (t.datatype, list(t.shape)) for t in sent.inputs}
        assert described["age"] == ("FP32", [1, 2])
        assert described["vector"] == ("FP16", [1, 2, 3])
        raw = dict(zip(described, sent.raw_input_contents, strict=True))
        assert (raw["age"], raw["vector"]) == (age.tobytes(), vector.tobytes())
        await client.close()
        await server.stop(None)

    asyncio.run(main())
