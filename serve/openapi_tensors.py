"""What ``/openapi.json`` says of the binary form (:mod:`serve.tensor_body`): tensors, limits, an example.

OpenAPI has no words for bytes with an inner structure, so the parts of a body are told three times: in prose
for people; as ``x-header``, the JSON Schema of the header, and ``x-tensors``, the tensors with their shapes
in names and numbers, for tools (``benchmarks fuzz`` makes its bodies from them); and as one body that works.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serve.clients import ranker_state_inputs
from serve.config import RankerConfig, SidecarConfig
from serve.requests import DEFAULT_K, MAX_CANDIDATE_NAME, MAX_NAME
from serve.tensor_body import (
    LENGTH_HEADER,
    MAX_TENSORS,
    MEDIA_TYPE,
    expected_tensors,
    tensor_request,
)
from serve.wire import DTYPES, bytes_tensor

Schema = dict[str, Any]

CANDIDATES, ENTRIES = "candidates", "entries"
"""Dimensions that a request chooses: of candidates, of history."""

EXAMPLE_CANDIDATES = 10

TENSOR_ANSWER: Schema = {
    "description": "Successful Response",
    "headers": {
        LENGTH_HEADER: {
            "description": f"Bytes of the JSON header; there where the answer is {MEDIA_TYPE}.",
            "schema": {"type": "integer", "minimum": 1},
        }
    },
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "Where Accept asks for it. A JSON header, then the raw outputs in its order: "
                "items (the candidates' datatype, [k]) and scores (FP64, [k]). The header has the request's "
                "id, and all else of the JSON answer as parameters.",
            }
        }
    },
}
"""The binary answer of a ranking, for ``responses``."""


def with_tensors(described: Schema, config: SidecarConfig, *, ranks: bool) -> Schema:
    """``openapi_extra`` of a serving route, its binary form beside JSON, or alone where JSON cannot do."""
    if ranks and config.ranker is None:
        return described
    ranker = config.ranker if ranks else None
    body = described["requestBody"]
    content = {**body["content"], MEDIA_TYPE: _media_type(config, ranker)}
    if ranker is not None and ranker.candidate_inputs:
        del content["application/json"]  # it has no place for features
    _, length = example_tensors(config, ranker)
    parameter = {
        "name": LENGTH_HEADER,
        "in": "header",
        "required": False,
        "description": f"Bytes of the JSON header of a body in {MEDIA_TYPE}: required with that media type, "
        "absent with JSON.",
        "schema": {"type": "integer", "minimum": 1, "maximum": config.limits.body_bytes},
        "example": length,
    }
    return {**described, "parameters": [parameter], "requestBody": {**body, "content": content}}


def example_tensors(config: SidecarConfig, ranker: RankerConfig | None) -> tuple[bytes, int]:
    """A body that is answered, and the length of its header: zeros, no history, unknown context.

    All its bytes are ASCII, so that it is a string of the description and its own encoding at once.
    """
    sizes = {CANDIDATES: min(EXAMPLE_CANDIDATES, config.limits.candidates), ENTRIES: 0}
    tensors = []
    for tensor in tensors_of(config, ranker):
        shape = [sizes[n] if isinstance(n, str) else n for n in tensor["shape"]]
        names = [""] * math.prod(shape)
        if ranker is not None and tensor["name"] == ranker.candidates_input:
            names = [str(i) for i in range(shape[0])]
            raw = np.arange(shape[0], dtype=np.int64).tobytes()
        elif tensor["datatype"] != "BYTES":
            raw = bytes(math.prod(shape) * np.dtype(DTYPES[tensor["datatype"]]).itemsize)
        if tensor["datatype"] == "BYTES":
            raw = bytes_tensor(names)
        tensors.append((tensor["name"], tensor["datatype"], shape, raw))
    parameters: dict[str, Any] = {"user_id": "u1"}
    if ranker is not None:
        parameters["k"] = min(3, config.limits.k)
    return tensor_request({"parameters": parameters}, tensors)


def tensors_of(config: SidecarConfig, ranker: RankerConfig | None) -> list[Schema]:
    """The tensors of a request: name, datatype, shape (free dimensions by name), whether it is required."""
    state, history = config.surface.state, config.surface.state.history
    shapes: dict[str, list[int | str]] = {"user_embedding": [state.user_embedding]}
    if history is not None:
        shapes |= {"history_embedding": [ENTRIES, history.embedding]}
        shapes |= {"history_action": [ENTRIES], "history_age_s": [ENTRIES]}
    if state.context:
        shapes["context"] = [len(state.context)]
    needed: set[str] = set()
    if ranker is not None:
        shapes[ranker.candidates_input] = [CANDIDATES]
        shapes |= {name: [CANDIDATES, *spec.shape] for name, spec in ranker.candidate_inputs.items()}
        needed = {ranker.candidates_input, *ranker.candidate_inputs}
        inputs = set(ranker_state_inputs(config.surface, ranker))
        # Whatever the ranker needs is encoded together with the user's embedding.
        needed |= {"user_embedding"} if inputs else set()
        if any(name.startswith("history_") for name in inputs):
            needed |= {name for name in shapes if name.startswith("history_")}
    datatypes = expected_tensors(ranker)
    return [
        {"name": name, "datatype": datatypes[name], "shape": shape, "required": name in needed}
        for name, shape in shapes.items()
    ]


def _media_type(config: SidecarConfig, ranker: RankerConfig | None) -> Schema:
    example, length = example_tensors(config, ranker)
    tensors = tensors_of(config, ranker)
    return {
        "schema": {
            "type": "string",
            "format": "binary",
            "minLength": 1,
            "maxLength": config.limits.body_bytes,
            "description": _prose(config, tensors),
            "x-header": _header(config, ranker, tensors),
            "x-tensors": tensors,
        },
        "examples": {
            "zeros": {
                "summary": f"with {LENGTH_HEADER}: {length}; every character is one byte",
                "value": example.decode("ascii"),
            }
        },
    }


def _prose(config: SidecarConfig, tensors: list[Schema]) -> str:
    limits = config.limits
    listed = "; ".join(map(_in_words, tensors))
    return (
        f"Open Inference Protocol (KServe v2) with its binary extension: a JSON header of {LENGTH_HEADER} "
        "bytes, then the raw tensors, nothing between them, in the order of the header's inputs; "
        "little-endian, row-major; an element of BYTES has its length before it as four bytes. "
        f"Tensors: {listed}. History is newest last; an empty word of the context is unknown. State that is "
        "missing or does not fit is a fallback, not an error, unless the ranker needs it. At most "
        f"{limits.candidates} candidates, each once, {limits.history} entries of history, {MAX_TENSORS} "
        f"tensors, {limits.body_bytes} bytes: more is a 413; an id that is a string has at most "
        f"{MAX_CANDIDATE_NAME} characters. A header that is not JSON, or tensors that do "
        "not end where the body does, are a 400; a tensor of another name, datatype or shape is a 422."
    )


def _in_words(tensor: Schema) -> str:
    shape = ", ".join(map(str, tensor["shape"]))
    return f"{tensor['name']} {tensor['datatype']} [{shape}]" + ("" if tensor["required"] else " (optional)")


def _header(config: SidecarConfig, ranker: RankerConfig | None, tensors: list[Schema]) -> Schema:
    name = {"type": "string", "maxLength": MAX_NAME}
    parameters: Schema = {"user_id": name, "cohort": name, "placement": name, "control": {"type": "boolean"}}
    if ranker is not None:
        most = config.limits.k
        default = min(DEFAULT_K, most)
        parameters["k"] = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    size = {
        "type": "object",
        "additionalProperties": False,
        "required": ["binary_data_size"],
        "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
    }
    described = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "datatype", "shape", "parameters"],
        "properties": {
            "name": {"enum": [t["name"] for t in tensors]},
            "datatype": {"enum": sorted({t["datatype"] for t in tensors})},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "parameters": size,
        },
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["inputs"],
        "properties": {
            "id": name,
            "parameters": {"type": "object", "additionalProperties": False, "properties": parameters},
            "inputs": {"type": "array", "items": described, "maxItems": MAX_TENSORS},
            "outputs": {"description": "accepted and not looked at"},
        },
    }
