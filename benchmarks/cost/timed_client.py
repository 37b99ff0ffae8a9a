"""A gRPC client of one model that keeps the time of its own parts and reads the server's."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.cost.contestants import CHOICE
from benchmarks.cost.networks import Subject
from triton_models.parity import Inputs
from triton_models.probe import RPC_TIMEOUT_S, import_grpc
from triton_models.tensors import NUMPY_DTYPES, input_specs

SERVER_PARTS = {
    "queue": "queue",
    "compute_input": "compute input",
    "compute_infer": "compute infer",
    "compute_output": "compute output",
}
CLIENT_PARTS = ("build request", "call", "read answer")


class TimedClient:
    """Requests to one model, timed in parts."""

    def __init__(self, connection: Any, subject: Subject) -> None:
        self.grpc = import_grpc()
        self.connection = connection
        self.model = subject.key
        self.types = {spec.name: spec.datatype for spec in input_specs(subject.surface)}
        self.outputs = [self.grpc.InferRequestedOutput(name) for name in CHOICE]
        self.spent = dict.fromkeys(CLIENT_PARTS, 0.0)

    def inputs(self, arrays: Inputs) -> list[Any]:
        """Arrays as protocol inputs."""
        found = []
        for name, array in arrays.items():
            tensor = self.grpc.InferInput(name, list(array.shape), self.types[name])
            tensor.set_data_from_numpy(array.astype(NUMPY_DTYPES[self.types[name]], copy=False))
            found.append(tensor)
        return found

    def choose(self, arrays: Inputs) -> dict[str, Any]:
        """One request and its answer; adds up what each part took."""
        start = time.perf_counter()
        inputs = self.inputs(arrays)
        built = time.perf_counter()
        result = self.connection.infer(self.model, inputs, outputs=self.outputs, client_timeout=RPC_TIMEOUT_S)
        answered = time.perf_counter()
        answer = {name: result.as_numpy(name) for name in CHOICE}
        end = time.perf_counter()
        for part, span in zip(CLIENT_PARTS, (built - start, answered - built, end - answered), strict=True):
            self.spent[part] += span
        return answer

    def statistics(self) -> dict[str, float]:
        """Cumulative seconds of the server's parts, executions and rows."""
        item = self.connection.get_inference_statistics(self.model).model_stats[0]
        found = {name: getattr(item.inference_stats, field).ns / 1e9 for field, name in SERVER_PARTS.items()}
        return {**found, "executions": float(item.execution_count), "rows": float(item.inference_count)}
