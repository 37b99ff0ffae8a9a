"""Requests and answers of the Open Inference Protocol, for tests of either way that they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from serve.wire import DTYPES, InputSpec, bytes_tensor


def described_inputs(
    library: Any, tensors: list[tuple[str, list[int]]], words: list[str]
) -> tuple[list[InputSpec], list[list[Any]], list[Any]]:
    """The same inputs for us (what stays the same, contents) and for a client of tritonclient's."""
    specs: list[InputSpec] = []
    contents: list[list[Any]] = []
    inputs: list[Any] = []
    for number, (datatype, shape) in enumerate(tensors):
        array = np.arange(int(np.prod(shape))).reshape(shape).astype(DTYPES[datatype])
        specs.append(InputSpec(f"input{number}", datatype, tuple(shape)))
        contents.append([array])
        inputs.append(library.InferInput(f"input{number}", shape, datatype))
        inputs[-1].set_data_from_numpy(array)
    specs.append(InputSpec("words", "BYTES", (len(words),)))
    contents.append([bytes_tensor(words)])
    inputs.append(library.InferInput("words", [len(words)], "BYTES"))
    inputs[-1].set_data_from_numpy(np.array([word.encode() for word in words], dtype=np.object_))
    return specs, contents, inputs


def http_body(arrays: dict[str, Any]) -> tuple[bytes, int]:
    """An answer over HTTP, and how much of it is JSON."""
    outputs = [
        {
            "name": name,
            "datatype": "INT64" if array.dtype == np.int64 else "FP32",
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    json = orjson.dumps({"model_name": "m", "model_version": "1", "outputs": outputs})
    return b"".join((json, *(array.tobytes() for array in arrays.values()))), len(json)


def http_answer(arrays: dict[str, Any], *, headers: str = "") -> bytes:
    """The same with its status line and headers; ``headers`` are whole lines more."""
    body, size = http_body(arrays)
    head = f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {size}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
