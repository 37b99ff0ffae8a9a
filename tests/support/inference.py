"""Calling a Triton server the way its clients do."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
_TYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}


def infer_inputs(arrays: Arrays) -> list[Any]:
    """Arrays with a batch dimension as protocol inputs."""
    import tritonclient.grpc as grpc

    inputs = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), _TYPES[array.dtype])
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    return inputs


def output_arrays(result: Any) -> dict[str, np.ndarray]:
    """Every output that was sent."""
    return {item.name: result.as_numpy(item.name) for item in result.get_response().outputs}


def infer(client: Any, model: str, arrays: Arrays, outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """One request; all outputs unless some are named."""
    import tritonclient.grpc as grpc

    wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
    return output_arrays(client.infer(model, infer_inputs(arrays), outputs=wanted, client_timeout=60))


def infer_together(client: Any, model: str, requests: Sequence[Arrays]) -> list[dict[str, np.ndarray] | str]:
    """Many requests at once; for each its outputs, or the message of its error."""
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for i, arrays in enumerate(requests):
        client.async_infer(
            model,
            infer_inputs(arrays),
            callback=lambda result, error, i=i: answers.put((i, result, error)),
            client_timeout=60,
        )
    got: list[dict[str, np.ndarray] | str] = [""] * len(requests)
    for _ in requests:
        i, result, error = answers.get(timeout=60)
        got[i] = str(error) if error is not None else output_arrays(result)
    return got


def row(arrays: Arrays, i: int) -> dict[str, np.ndarray]:
    """Row ``i`` as a request of batch 1."""
    return {name: array[i : i + 1] for name, array in arrays.items()}
