"""Requests as tensors: the Open Inference Protocol over HTTP with its binary extension (KServe v2).

The body is a JSON object of ``Inference-Header-Content-Length`` bytes, then the raw tensors one after the
other, in the order of ``inputs``; little-endian, row-major; a BYTES element has its length before it as four
bytes. 2,000 candidates with features cost a fifth of what they cost as JSON (FACTS.md)::

    {"id": "r1",
     "parameters": {"user_id": "u1", "cohort": "core", "placement": "home", "k": 25, "control": true},
     "inputs": [
       {"name": "user_embedding",    "datatype": "FP32",  "shape": [D],
        "parameters": {"binary_data_size": …}},
       {"name": "history_embedding", "datatype": "FP32",  "shape": [L, E], …},
       {"name": "history_action",    "datatype": "BYTES", "shape": [L],    …},
       {"name": "history_age_s",     "datatype": "FP32",  "shape": [L],    …},
       {"name": "context",           "datatype": "BYTES", "shape": [C],    …},
       {"name": "candidate_ids",     "datatype": "INT64", "shape": [n],    …},
       {"name": "<feature>",         "datatype": …,       "shape": [n, …], …}]}

The state is the same as in JSON: any length L of history, newest last; words of the context in the surface's
order, an empty one is unknown; what is missing or does not fit is a fallback, not an error. Candidates and
their features (``ranker.candidate_inputs``) are the ranker's, and must be right: 422. Features are passed on
as they came, not copied into numbers and not looked at. ``data`` in place of ``binary_data_size`` is refused:
who wants JSON has the JSON form.

The answer has the same form where ``Accept`` asks for ``application/octet-stream``: outputs ``items`` and
``scores``, and everything else that the JSON answer has as its ``parameters``.

``/v1/weights`` takes the same without candidates, their features and ``k``; its answer is a few numbers, and
always JSON. :mod:`serve.openapi_tensors` describes both for ``/openapi.json``.

Shape legend: n candidates, L history, D, E embeddings, C context fields, k served.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from serve.config import Limits, RankerConfig, SidecarConfig
from serve.requests import RankRequest, WeightsRequest, rank_request, shown, weights_request
from serve.wire import DTYPES, bytes_tensor
from triton_models.errors import RequestError, RequestMalformedError, RequestTooLargeError
from triton_models.surface import Surface

LENGTH_HEADER = "inference-header-content-length"
MEDIA_TYPE = "application/octet-stream"

STATE_DATATYPES = {
    "user_embedding": "FP32",
    "history_embedding": "FP32",
    "history_action": "BYTES",
    "history_age_s": "FP32",
    "context": "BYTES",
}
HEADER_FIELDS = frozenset({"id", "parameters", "inputs", "outputs"})
WEIGHTS_PARAMETERS = frozenset({"user_id", "cohort", "placement", "control"})
RANK_PARAMETERS = WEIGHTS_PARAMETERS | {"k"}
TENSOR_FIELDS = frozenset({"name", "datatype", "shape", "parameters"})
MAX_TENSORS = 64
MAX_RANK = 8
MAX_DIGITS = 18

Tensors = Mapping[str, tuple[tuple[int, ...], memoryview]]
"""Name → shape and bytes."""


def parse_rank_tensors(body: bytes, header_length: str, config: SidecarConfig) -> RankRequest:
    """Parse the body of ``/v1/rank`` in binary form.

    Raises:
        RequestError: one line that says which part is wrong, or which limit is passed.
    """
    if config.ranker is None:
        raise RequestError("this sidecar has no ranker; ask /v1/weights instead")
    ranker, limits = config.ranker, config.limits
    header, tensors = _opened(body, header_length, limits, expected_tensors(ranker), RANK_PARAMETERS)
    for name in (ranker.candidates_input, *ranker.candidate_inputs):
        if name not in tensors:
            raise RequestError(f"inputs: {name} is missing")
    candidates = _candidates(ranker, *tensors[ranker.candidates_input], limits.candidates)
    features = _features(ranker, tensors, len(candidates))
    data = _common(header, config, tensors) | {"candidates": candidates}
    return rank_request(data, limits, ranker.candidates_type, features)


def parse_weights_tensors(body: bytes, header_length: str, config: SidecarConfig) -> WeightsRequest:
    """Parse the body of ``/v1/weights`` in binary form.

    Raises:
        RequestError: one line that says which part is wrong, or which limit is passed.
    """
    limits = config.limits
    header, tensors = _opened(body, header_length, limits, expected_tensors(None), WEIGHTS_PARAMETERS)
    return weights_request(_common(header, config, tensors), limits)


def expected_tensors(ranker: RankerConfig | None) -> dict[str, str]:
    """Every tensor that may come → its datatype; without a ranker the state's only."""
    if ranker is None:
        return STATE_DATATYPES
    features = {name: spec.datatype for name, spec in ranker.candidate_inputs.items()}
    return {**STATE_DATATYPES, **features, ranker.candidates_input: ranker.candidates_type}


def _opened(
    body: bytes, header_length: str, limits: Limits, expected: Mapping[str, str], parameters: frozenset[str]
) -> tuple[dict[str, Any], Tensors]:
    if len(body) > limits.body_bytes:
        raise RequestTooLargeError(f"body: at most {limits.body_bytes} bytes, got {len(body)}")
    header, rest = _header(body, header_length)
    tensors = _tensors(header.get("inputs"), rest, expected)
    given = header.get("parameters", {})
    if not isinstance(given, dict) or not given.keys() <= parameters:
        raise RequestError(f"parameters: expected an object with any of {', '.join(sorted(parameters))}")
    return header, tensors


def _common(header: dict[str, Any], config: SidecarConfig, tensors: Tensors) -> dict[str, Any]:
    return {
        **header.get("parameters", {}),
        "request_id": header.get("id"),
        "state": _state(config.surface, tensors, config.limits.history),
    }


def _header(body: bytes, header_length: str) -> tuple[dict[str, Any], memoryview]:
    # Of no more digits than any body's length has: int() refuses thousands of them, and in its own way.
    plain = header_length.isascii() and header_length.isdecimal() and len(header_length) <= MAX_DIGITS
    length = int(header_length) if plain else -1
    if not 0 < length <= len(body):
        raise RequestMalformedError(
            f"{LENGTH_HEADER}: expected a number of bytes from 1 to the body's {len(body)}, "
            f"got {shown(header_length)}"
        )
    whole = memoryview(body)
    try:
        header = orjson.loads(whole[:length])
    except orjson.JSONDecodeError as error:
        raise RequestMalformedError(f"header: not JSON: {error}") from error
    if not isinstance(header, dict):
        raise RequestMalformedError(f"header: expected an object, got {type(header).__name__}")
    if not header.keys() <= HEADER_FIELDS:
        unknown = sorted(header.keys() - HEADER_FIELDS)[0]
        raise RequestError(f"header: unknown field {shown(unknown)}")
    return header, whole[length:]


def _tensors(inputs: object, rest: memoryview, expected: Mapping[str, str]) -> Tensors:
    if not isinstance(inputs, list) or len(inputs) > MAX_TENSORS:
        raise RequestError(f"inputs: expected a list of at most {MAX_TENSORS} tensors")
    found: dict[str, tuple[tuple[int, ...], memoryview]] = {}
    start = 0
    for number, item in enumerate(inputs):
        where = f"inputs[{number}]"
        name, datatype, shape, size = _described(item, where)
        if name not in expected:
            raise RequestError(f"{where}: no tensor {shown(name)}; there are {', '.join(expected)}")
        if name in found:
            raise RequestError(f"{where}: {name} appears twice")
        if datatype != expected[name]:
            raise RequestError(f"{where}: {name} is {expected[name]}, got {shown(datatype)}")
        if datatype != "BYTES" and size != math.prod(shape) * np.dtype(DTYPES[datatype]).itemsize:
            raise RequestError(f"{where}: {name} has {size} bytes, which is not {datatype} {list(shape)}")
        if start + size > len(rest):
            raise RequestMalformedError(
                f"{where}: {name} ends {start + size - len(rest)} bytes after the body"
            )
        found[name] = (shape, rest[start : start + size])
        start += size
    if start != len(rest):
        raise RequestMalformedError(f"body: {len(rest) - start} bytes belong to no tensor")
    return found


def _described(item: object, where: str) -> tuple[str, str, tuple[int, ...], int]:
    if not isinstance(item, dict) or not item.keys() <= TENSOR_FIELDS:
        raise RequestError(f"{where}: expected name, datatype, shape and parameters.binary_data_size")
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    parameters = item.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise RequestError(f"{where}: name and datatype must be strings")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_RANK or set(map(type, shape)) != {int}:
        raise RequestError(f"{where}: shape must be a list of 1 to {MAX_RANK} whole numbers")
    if min(shape) < 0 or type(size) is not int or size < 0:
        raise RequestError(f"{where}: shape and parameters.binary_data_size must not be negative or absent")
    return name, datatype, tuple(shape), size


def _words(name: str, shape: tuple[int, ...], raw: memoryview) -> list[str]:
    """A BYTES tensor of one dimension as text."""
    words: list[str] = []
    start = 0
    while start < len(raw) and len(words) < shape[0]:
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            break
        try:
            words.append(str(raw[start + 4 : end], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(f"{name}: element {len(words)} is not UTF-8") from error
        start = end
    if len(shape) != 1 or len(words) != shape[0] or start != len(raw):
        raise RequestError(f"{name}: {len(raw)} bytes are not BYTES {list(shape)}")
    return words


def _candidates(ranker: RankerConfig, shape: tuple[int, ...], raw: memoryview, limit: int) -> list[Any]:
    if len(shape) != 1:
        raise RequestError(f"{ranker.candidates_input}: expected shape [candidates], got {list(shape)}")
    if shape[0] < 1:
        raise RequestError("candidates: expected at least one id")
    if shape[0] > limit:
        raise RequestTooLargeError(f"candidates: at most {limit}, got {shape[0]}")
    if ranker.candidates_type == "BYTES":
        return _words(ranker.candidates_input, shape, raw)
    ids: list[Any] = np.frombuffer(raw, dtype=np.int64).tolist()
    return ids


def _features(ranker: RankerConfig, tensors: Tensors, num_candidates: int) -> dict[str, memoryview]:
    features = {}
    for name, spec in ranker.candidate_inputs.items():
        shape, raw = tensors[name]
        if shape != (num_candidates, *spec.shape):
            expected = [num_candidates, *spec.shape]
            raise RequestError(f"{name}: expected shape {expected}, got {list(shape)}")
        features[name] = raw
    return features


def _state(surface: Surface, tensors: Tensors, history_limit: int) -> dict[str, Any]:
    """The state in the shape that JSON gives it, with arrays in place of lists."""

    def floats(name: str) -> Any:
        if name not in tensors:
            return None
        shape, raw = tensors[name]
        try:
            return np.frombuffer(raw, dtype=np.float32).reshape(shape)
        except (ValueError, OverflowError) as error:  # beside a dimension of 0 the others may say anything
            raise RequestError(f"{name}: shape {list(shape)} is too large") from error

    state: dict[str, Any] = {"user_embedding": floats("user_embedding")}
    if any(name.startswith("history_") for name in tensors):
        action = tensors.get("history_action")
        if action is not None and action[0][0] > history_limit:  # before a million words are made of it
            raise RequestTooLargeError(f"history_action: at most {history_limit} entries, got {action[0][0]}")
        state["history"] = {
            "embedding": floats("history_embedding"),
            "action": None if action is None else _words("history_action", *action),
            "age_s": floats("history_age_s"),
        }
    if "context" in tensors:
        shape, raw = tensors["context"]
        if shape != (len(surface.state.context),):
            raise RequestError(f"context: expected shape {[len(surface.state.context)]}, got {list(shape)}")
        words = _words("context", shape, raw)
        state["context"] = dict(zip(surface.state.context, words, strict=True))
    return state


def tensor_request(
    header: Mapping[str, Any], tensors: Sequence[tuple[str, str, Sequence[int], bytes]]
) -> tuple[bytes, int]:
    """A request in this form: the body, and the length of its JSON part.

    Args:
        header: ``id`` and ``parameters``.
        tensors: Name, datatype, shape and bytes of each.
    """
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(shape),
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, datatype, shape, raw in tensors
    ]
    front = json.dumps({**header, "inputs": inputs}).encode()
    return b"".join((front, *(raw for *_, raw in tensors))), len(front)


def tensor_answer(answer: dict[str, Any], candidates_type: str) -> tuple[bytes, int]:
    """An answer in the same form: the body, and the length of its JSON part."""
    items, scores = answer.pop("items"), answer.pop("scores")
    raw_items = bytes_tensor(items) if candidates_type == "BYTES" else np.array(items, np.int64).tobytes()
    raw_scores = np.array(scores, dtype=np.float64).tobytes()
    outputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [len(items)],
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, datatype, raw in (("items", candidates_type, raw_items), ("scores", "FP64", raw_scores))
    ]
    header = orjson.dumps(
        {
            "model_name": "sidecar",
            "id": answer.pop("request_id"),
            "parameters": answer,
            "outputs": outputs,
        }
    )
    return b"".join((header, raw_items, raw_scores)), len(header)
