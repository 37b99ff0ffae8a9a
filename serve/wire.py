"""What the ways to a KServe v2 server have in common: :mod:`serve.grpc_wire` and :mod:`serve.http_wire`.

Both carry the same tensors as the same bytes (little-endian, row-major). What stays the same from request
to request is made once, a :class:`Template`; per request the tensors' bytes are filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from triton_models.errors import UpstreamInvalidError, UpstreamUnavailableError

Headers = Mapping[str, str]
"""Passed on, for example W3C trace context: as gRPC metadata, or as HTTP headers."""

Contents = Sequence[Sequence[Any]]
"""Of each input the buffers whose bytes, one after the other, are its tensor; contiguous arrays or bytes."""

Output = tuple[str, tuple[int, ...], bytes]
"""Datatype, shape, content."""

DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""Datatypes of fixed size. Their bytes are little-endian and row-major, as NumPy's here."""

CHECK_TIMEOUT_S = 10.0
"""For what no request waits for: a server's description, its readiness."""


class Answer(NamedTuple):
    """What is read of an answer."""

    version: str
    """Of the model that answered; empty where the server does not say."""
    outputs: dict[str, Output]


@dataclass(frozen=True)
class InputSpec:
    """What stays the same of an input: name, datatype and shape, batch dimension included."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int | None:
        """Bytes of its tensor; None: it has elements of any length."""
        dtype = DTYPES.get(self.datatype)
        return None if dtype is None else prod(self.shape) * np.dtype(dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a server's configuration says of a model."""

    parameters: dict[str, str]
    max_batch_size: int
    version: str | None
    """That it names as the one that it is of, as export writes it; None: none, or several."""


class Template(Protocol):
    """A request but for its tensors' bytes."""

    def filled(self, contents: Contents) -> bytes:
        """The request with these tensors, in the order of the inputs."""


class Wire(Protocol):
    """A way to one model at one address, reused by all calls. Made inside the event loop that uses it.

    Its errors are its library's own; :meth:`mapped` makes them ours. Nothing is cancelled, deadlines are
    long (:mod:`serve.fanout` says why).
    """

    def template(self, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> Template:
        """What stays the same of requests with these inputs that ask for these outputs."""

    async def infer(self, request: bytes, headers: Headers) -> Answer:
        """Send a filled template."""

    async def describe(self) -> Description:
        """Ask for the model's configuration."""

    async def ready(self) -> bool:
        """Ask whether the model is ready; False also when nobody answers."""

    def mapped(self, error: Exception, who: str) -> Exception:
        """A foreign error as an ``UpstreamError``."""

    async def close(self) -> None:
        """Give the connections back."""


def silent(who: str, why: object) -> UpstreamUnavailableError:
    """Nobody answered."""
    return UpstreamUnavailableError(f"{who} gives no answer: {why}")


def unreadable(who: str, error: Exception) -> UpstreamInvalidError:
    """Something answered, and it was not an answer."""
    return UpstreamInvalidError(f"{who}: unreadable answer: {error!r}")


def size_of(buffers: Sequence[Any]) -> int:
    """Bytes of a tensor that lies in several buffers."""
    return sum(b.nbytes if isinstance(b, np.ndarray | memoryview) else len(b) for b in buffers)


def bytes_tensor(values: Sequence[str]) -> bytes:
    """A BYTES tensor: each element with its length in four bytes before it."""
    parts: list[bytes] = []
    for value in values:
        encoded = value.encode()
        parts += (len(encoded).to_bytes(4, "little"), encoded)
    return b"".join(parts)


def array_of(who: str, name: str, output: Output) -> npt.NDArray[Any]:
    """An output as an array.

    Raises:
        UpstreamInvalidError: it is not what it says, or not of numbers.
    """
    datatype, shape, raw = output
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise UpstreamInvalidError(f"{who}: output {name} is {datatype}, not numbers")
    try:
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
    except ValueError as error:
        raise UpstreamInvalidError(
            f"{who}: output {name} has {len(raw)} bytes for {datatype} {list(shape)}"
        ) from error
