"""Spoilt answers over HTTP, from the status line to the last tensor; ``http.client`` reads them as well.

The real connection gets the bytes from a transport that answers whatever is written to it at once, and
closes where they were no whole answer. Connections stay open from case to case as between requests.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import random
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

from benchmarks.fuzz.answers_grpc import Arrays, arrays_of, odd_numbers
from benchmarks.fuzz.mutate import altered, spoilt
from serve.clients import TritonRankerClient, TritonValueClient
from serve.http_wire import JSON_SIZE, Connection, HttpWire

_T = TypeVar("_T")

WORDS = (
    *(b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"Inference-Header-Content-Length: 9\r\n", b'"binary_data_size":', b"1e9", b"-1", b"null", b"[]"),
)
"""Pieces that mean something in such an answer."""

STATUS_LINES = ("400 Bad Request", "404 Not Found", "500 Internal Server Error", "204 No Content", "600 x")


class _Socket:
    """What ``http.client`` wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


class _Transport(asyncio.Transport):
    """Answers at once; closes behind an answer that is not whole."""

    def __init__(self, way: HttpWay, connection: Connection) -> None:
        super().__init__()
        self._way, self._connection = way, connection
        self._closed = False

    def write(self, data: Any) -> None:
        """Told by the connection."""
        self._connection.data_received(self._way.answer)
        if self._connection.is_waiting and not self._closed:
            self._closed = True
            self._connection.connection_lost(None)

    def abort(self) -> None:
        """Told by the connection."""
        if not self._closed:
            self._closed = True
            self._connection.connection_lost(None)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed


class HttpWay:
    """See :class:`benchmarks.fuzz.answers.Way`."""

    name = "HTTP"
    address = "http://127.0.0.1:1"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.answer = b""

    def attach(self, client: TritonValueClient | TritonRankerClient) -> None:
        """See :class:`benchmarks.fuzz.answers.Way`."""
        if not isinstance(client.wire, HttpWire):
            raise TypeError("the address is not of HTTP")
        client.wire.connect = self._connected

    async def _connected(self) -> Connection:
        connection = Connection()
        connection.connection_made(_Transport(self, connection))
        return connection

    def ended(self, call: Coroutine[Any, Any, _T]) -> _T:
        """See :class:`benchmarks.fuzz.answers.Way`."""
        return self._loop.run_until_complete(call)

    def made(self, pick: random.Random, way: float, who: str, arrays: Arrays) -> tuple[str, bytes]:
        """An answer: honest, or spoilt in its numbers, its description or its bytes."""
        outputs = [
            {
                "name": name,
                "datatype": "INT64" if array.dtype == np.int64 else "FP32",
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in arrays.items()
        ]
        said: Any = {"model_name": who, "model_version": "1", "outputs": outputs}
        raw = [array.tobytes() for array in arrays.values()]
        chunked = pick.random() < 0.2
        if way < 0.1:
            return f"{who}: honest", whole(said, raw, chunked=chunked)
        if way < 0.3:
            at = pick.randrange(len(raw))
            raw[at] = odd_numbers(pick, raw[at])
            return f"{who}: numbers", whole(said, raw, chunked=chunked)
        if way < 0.5:
            return f"{who}: message", whole(altered(pick, said), raw, chunked=chunked)
        if way < 0.6:
            status = pick.choice(STATUS_LINES)
            return f"{who}: status", whole(said, raw, chunked=chunked, status=status)
        return f"{who}: bytes", spoilt(pick, whole(said, raw, chunked=chunked), WORDS)

    def read_plainly(self, answer: bytes, names: Sequence[str]) -> Arrays | None:
        """See :class:`benchmarks.fuzz.answers.Way`."""
        try:
            response = http.client.HTTPResponse(_Socket(answer))  # type: ignore[arg-type]
            response.begin()
            body = response.read()
            size = int(response.headers[JSON_SIZE.decode()])
            said, found, at = json.loads(body[:size]), {}, size
            for output in said["outputs"]:
                end = at + output["parameters"]["binary_data_size"]
                found[output["name"]] = (output["datatype"], output["shape"], body[at:end])
                at = end
            return arrays_of(found, names)
        except Exception:  # whatever it is, these bytes hold no such arrays
            return None


def whole(said: object, raw: Sequence[bytes], *, chunked: bool, status: str = "200 OK") -> bytes:
    """An answer, its body in one piece or in chunks."""
    text = json.dumps(said).encode()
    body = b"".join((text, *raw))
    head = f"HTTP/1.1 {status}\r\nInference-Header-Content-Length: {len(text)}\r\n"
    if not chunked:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[i : i + 64] for i in range(0, len(body), 64)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
