"""Bodies in the binary form, made from what ``/openapi.json`` says of them, and the same spoilt.

A body that the description allows must be served; one of ten thousand ways to break it must be refused in
one line. Both are drawn from a seed, so a finding can be made again.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np

from serve.tensor_body import LENGTH_HEADER, MEDIA_TYPE, tensor_request
from serve.wire import DTYPES, bytes_tensor

Described = dict[str, Any]
Tensor = tuple[str, str, list[int], bytes]

WORDS = ["", "save", "click", "phone", "night", "never-seen", "é" * 20, "\x00", "x" * 300]
MOST_ENTRIES = 8
EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38]


def _media_type(description: Described, path: str) -> Described:
    body = description["paths"].get(path, {}).get("post", {}).get("requestBody", {})
    found: Described = body.get("content", {}).get(MEDIA_TYPE, {})
    return found


def described_tensors(description: Described, path: str) -> Described:
    """The schema of the binary body of ``POST path``; empty: it has none."""
    found: Described = _media_type(description, path).get("schema", {})
    return found


def examples_of(description: Described, path: str) -> list[bytes]:
    """The bodies that the description gives."""
    examples = _media_type(description, path).get("examples", {})
    return [example["value"].encode("ascii") for example in examples.values()]


class TensorBodies:
    """Makes bodies of one route."""

    def __init__(self, schema: Described) -> None:
        self._tensors: list[Described] = schema["x-tensors"]
        self._parameters: Described = schema["x-header"]["properties"]["parameters"]["properties"]
        self._most = {"entries": MOST_ENTRIES, "candidates": 10}

    def allowed(self, pick: random.Random) -> bytes:
        """A body as the description allows it; required tensors are there, others as it comes."""
        sizes = {"entries": pick.randint(0, self._most["entries"])}
        sizes["candidates"] = pick.randint(1, self._most["candidates"])
        chosen = [t for t in self._tensors if t["required"] or pick.random() < 0.8]
        pick.shuffle(chosen)
        tensors = [self._tensor(pick, tensor, sizes) for tensor in chosen]
        header: dict[str, Any] = {"parameters": self._some_parameters(pick)}
        if pick.random() < 0.7:
            header["id"] = f"fuzz-{pick.random()}"
        return tensor_request(header, tensors)[0]

    def spoilt(self, pick: random.Random) -> tuple[bytes, str]:
        """A body that is wrong somewhere, and the length that the header claims."""
        body = bytearray(self.allowed(pick))
        length = header_length(body)
        way = pick.choice([0, 1, 2, 3, 3, 4, 4])
        if way == 0:
            claimed = pick.choice(["", "-1", "0", "x", "9" * 400, "1e3", str(length + 1), str(len(body) + 1)])
            return bytes(body), claimed
        if way == 1:
            del body[pick.randrange(len(body)) :]
            return bytes(body), str(length)
        if way == 2:
            return bytes(body) + pick.randbytes(pick.randint(1, 9)), str(length)
        header = json.loads(body[:length])
        if way == 3:
            # As long as before, so that what is looked at is the numbers and words themselves.
            at = pick.randrange(length, len(body)) if len(body) > length else 0
            odd_bytes = pick.choice([b"\xff" * 4, b"\x00" * 4, b"\x00\x00\xc0\x7f", pick.randbytes(4)])
            body[at : at + 4] = odd_bytes[: len(body[at : at + 4])]
            return bytes(body), str(length)
        tensor = pick.choice(header["inputs"]) if header["inputs"] else header
        odd: list[Any] = [None, -1, 2**63, 1.5, "FP64", "é", [], [0, 2**62], [-1], [1] * 9, {}]
        tensor[pick.choice([*tensor, "data", "name"])] = pick.choice(odd)
        front = json.dumps(header).encode()
        return front + bytes(body[length:]), str(len(front))

    # ------------------------------------------------------------------ parts

    def _tensor(self, pick: random.Random, tensor: Described, sizes: dict[str, int]) -> Tensor:
        shape = [sizes[n] if isinstance(n, str) else n for n in tensor["shape"]]
        count, datatype = math.prod(shape), tensor["datatype"]
        is_id = tensor["shape"] == ["candidates"] and datatype in ("INT64", "BYTES")
        if datatype == "BYTES":
            words = [str(i) for i in range(count)] if is_id else [pick.choice(WORDS) for _ in range(count)]
            raw = bytes_tensor(words)
        elif is_id:
            raw = (pick.randint(-(2**62), 2**62) + np.arange(count, dtype=np.int64)).tobytes()
        elif datatype == "FP32":
            numbers = [pick.choice([*EDGES, pick.uniform(-1, 1)]) for _ in range(count)]
            raw = np.array(numbers, dtype=np.float32).tobytes()
        else:
            raw = bytes(count * np.dtype(DTYPES[datatype]).itemsize)
        return tensor["name"], datatype, shape, raw

    def _some_parameters(self, pick: random.Random) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, schema in self._parameters.items():
            if pick.random() < 0.5:
                found[name] = (
                    pick.random() < 0.5
                    if schema["type"] == "boolean"
                    else pick.randint(schema["minimum"], schema["maximum"])
                    if schema["type"] == "integer"
                    else pick.choice(["", "u1", "core", "é", "x" * schema["maxLength"]])
                )
        return found


def header_length(body: bytes | bytearray) -> int:
    """The length of the JSON that a body of :func:`tensor_request` begins with."""
    _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))  # ASCII: a character is a byte
    return end


def headers_of(body: bytes) -> dict[str, str]:
    """What a body of :func:`tensor_request` is sent with."""
    return {"content-type": MEDIA_TYPE, LENGTH_HEADER: str(header_length(body))}
