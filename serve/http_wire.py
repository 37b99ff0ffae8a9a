"""Open Inference Protocol (KServe v2) over HTTP/1.1, tensors as bytes.

The `binary tensor data extension`_: a JSON head that says what the tensors are, and their bytes behind it ::

    POST /v2/models/MODEL/infer
    Inference-Header-Content-Length: bytes of the JSON

    {"inputs": [{"name", "shape", "datatype", "parameters": {"binary_data_size"}}, …],
     "outputs": [{"name", "parameters": {"binary_data": true}}, …]} ‖ bytes ‖ bytes …

The answer is of the same form. All but the tensors' bytes stays the same from request to request.

Why not a client library: beside a ranker that needs two milliseconds every tenth of one is seen. One call to
a value network costs its caller 0.14 ms of a core this way, 0.33 with aiohttp and 0.41 with gRPC's asyncio
(``benchmarks/RESULTS.md``). What is hard of HTTP, reading it, does llhttp (``httptools``, as in uvicorn).

One connection carries one call at a time; there are as many as there were calls at once. A server may close a
connection that is not in use: a call that gets nothing at all from one that was used before is sent once
more, which changes nothing at the server, since inference has no effects.

.. _binary tensor data extension:
   https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httptools
import orjson

from serve.config import ClientTlsConfig
from serve.wire import (
    CHECK_TIMEOUT_S,
    Answer,
    Contents,
    Description,
    Headers,
    InputSpec,
    Output,
    silent,
    size_of,
    unreadable,
)
from triton_models.errors import ConfigurationError, UpstreamError, UpstreamRefusedError

CONNECT_TIMEOUT_S = 5.0

JSON_SIZE = b"inference-header-content-length"

GONE_AFTER_S = 15
"""A machine that is gone closes no connection: without this TCP finds out after a quarter of an hour."""

OK, BAD_REQUEST = 200, 400


@dataclass
class Response:
    """An answer of HTTP."""

    status: int
    json_size: int | None
    """Bytes of the body that are JSON; None: all."""
    body: bytes


class StaleConnectionError(ConnectionError):
    """The server had closed a connection, or closed it without a word, when a call was sent."""


class StatusError(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class HttpTemplate:
    """A request but for its first lines and its tensors' bytes."""

    def __init__(self, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> None:
        self._inputs = tuple(inputs)
        self._outputs = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        self._sizes = [spec.size for spec in inputs]
        known = [size for size in self._sizes if size is not None]
        # Where every size is known, so are all headers.
        self._head = self._made(known) if len(known) == len(self._sizes) else b""

    def filled(self, contents: Contents) -> bytes:
        """From the headers that say its sizes on."""
        sizes = [size_of(buffers) for buffers in contents]
        parts: list[Any] = [self._head if self._head and sizes == self._sizes else self._made(sizes)]
        for buffers in contents:
            parts += buffers
        return b"".join(parts)

    def _made(self, sizes: Sequence[int]) -> bytes:
        inputs = [
            {
                "name": spec.name,
                "shape": spec.shape,
                "datatype": spec.datatype,
                "parameters": {"binary_data_size": size},
            }
            for spec, size in zip(self._inputs, sizes, strict=True)
        ]
        json = orjson.dumps({"inputs": inputs, "outputs": self._outputs})
        head = f"Inference-Header-Content-Length: {len(json)}\r\nContent-Length: {len(json) + sum(sizes)}"
        return head.encode() + b"\r\n\r\n" + json


class Connection(asyncio.Protocol):
    """One connection, one call at a time; also what httptools tells what it reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._answer: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []
        self._json_size: int | None = None
        self._heard = False

    # ------------------------------------------------------------------ for the caller

    @property
    def is_open(self) -> bool:
        """Whether it can carry a call."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_waiting(self) -> bool:
        """Whether a call is under way."""
        return self._answer is not None

    def ask(self, request: bytes, timeout_s: float) -> asyncio.Future[Response]:
        """Send a request; its answer is to come, or a :class:`ConnectionError` or :class:`TimeoutError`."""
        if self._transport is None or self._answer is not None:
            raise RuntimeError("a connection carries one call at a time")
        self._answer = answer = self._loop.create_future()
        self._body, self._json_size, self._heard = [], None, False
        self._parser = httptools.HttpResponseParser(self)
        self._timer = self._loop.call_later(timeout_s, self._expired, timeout_s)
        self._transport.write(request)
        return answer

    def close(self) -> None:
        """Give it up; a call under way ends with an error."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Told by asyncio."""
        self._transport = transport  # type: ignore[assignment]
        live = transport.get_extra_info("socket")
        if live is not None:
            live.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                live.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_AFTER_S)
                live.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, GONE_AFTER_S)
                live.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_AFTER_S * 1000)

    def data_received(self, data: bytes) -> None:
        """Told by asyncio."""
        self._heard = True
        if self._answer is None:
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Told by asyncio."""
        self._transport = None
        if self._heard:
            self._end(ConnectionError(f"the connection was lost inside an answer ({exc or 'closed'})"))
        else:
            self._end(StaleConnectionError(f"the connection was lost ({exc or 'closed'})"))

    def _expired(self, timeout_s: float) -> None:
        self._end(TimeoutError(f"no answer within {timeout_s:g} s"))

    def _end(self, error: Exception) -> None:
        self.close()
        self._settle(error)

    def _settle(self, result: Response | Exception) -> None:
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if answer is None or answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    # ------------------------------------------------------------------ httptools' side

    def on_message_begin(self) -> None:
        """Told by httptools."""
        if self._answer is None:
            self.close()  # an answer more than there were questions: whose would the next one be?

    def on_header(self, name: bytes, value: bytes) -> None:
        """Told by httptools."""
        if name.lower() == JSON_SIZE and value.isdigit():
            self._json_size = int(value)

    def on_body(self, body: bytes) -> None:
        """Told by httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Told by httptools."""
        parser = self._parser
        status = parser.get_status_code()
        if status < OK:  # 100 Continue and its like: the answer is still to come
            self._body = []
            return
        if not parser.should_keep_alive():
            self.close()
        self._settle(Response(status, self._json_size, b"".join(self._body)))


class HttpWire:
    """Connections to one server.

    Raises:
        ConfigurationError: a certificate or key cannot be read.
    """

    def __init__(self, address: str, model: str, rpc_timeout_s: float, tls: ClientTlsConfig | None) -> None:
        url = urlsplit(address)
        self._host, self._port = url.hostname or "", url.port or 0
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._rpc_timeout_s = rpc_timeout_s
        self._tls = _context(tls) if url.scheme == "https" else None
        self._server_name = (tls.server_name if tls else None) or self._host
        self._host_line = f"Host: {url.netloc}\r\n".encode()
        self._infer_line = self._first_lines("POST", "/infer")
        self.connect: Callable[[], Awaitable[Connection]] = self._connect
        """Makes one more; what stands in for a server in rehearsals takes its place."""
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    def template(self, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> HttpTemplate:
        """See :class:`serve.wire.Wire`."""
        return HttpTemplate(inputs, outputs)

    async def infer(self, request: bytes, headers: Headers) -> Answer:
        """See :class:`serve.wire.Wire`."""
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items())
        response = await self._ask(b"".join((self._infer_line, lines, request)), self._rpc_timeout_s)
        return read_answer(_right(response))

    async def describe(self) -> Description:
        """See :class:`serve.wire.Wire`."""
        request = self._first_lines("GET", "/config") + b"\r\n"
        config = orjson.loads(_right(await self._ask(request, CHECK_TIMEOUT_S)).body)
        named = config.get("version_policy", {}).get("specific", {}).get("versions", [])
        values = config.get("parameters", {}).items()
        return Description(
            parameters={name: str(value.get("string_value", "")) for name, value in values},
            max_batch_size=int(config.get("max_batch_size", 0)),
            version=str(named[0]) if len(named) == 1 else None,
        )

    async def ready(self) -> bool:
        """See :class:`serve.wire.Wire`."""
        request = self._first_lines("GET", "/ready") + b"\r\n"
        try:
            return (await self._ask(request, CHECK_TIMEOUT_S)).status == OK
        except Exception:  # the seam; whatever it is, the model is not ready
            return False

    def mapped(self, error: Exception, who: str) -> UpstreamError:
        """See :class:`serve.wire.Wire`."""
        if isinstance(error, StatusError):
            refused = error.status == BAD_REQUEST
            return UpstreamRefusedError(f"{who}: {error}") if refused else silent(who, error)
        if isinstance(error, OSError):
            return silent(who, error)
        return unreadable(who, error)

    async def close(self) -> None:
        """See :class:`serve.wire.Wire`."""
        for connection in list(self._all):
            connection.close()
        await asyncio.sleep(0)  # asyncio tells the connections that they are lost

    # ------------------------------------------------------------------ parts

    def _first_lines(self, method: str, what: str) -> bytes:
        return f"{method} {self._path}{what} HTTP/1.1\r\n".encode() + self._host_line

    async def _ask(self, request: bytes, timeout_s: float) -> Response:
        while True:
            connection = self._unused()
            used_before = connection is not None
            if connection is None:
                connection = await self.connect()
                self._all.add(connection)
            try:
                response = await connection.ask(request, timeout_s)
            except StaleConnectionError:
                if not used_before:
                    raise
                continue
            except asyncio.CancelledError:
                connection.close()  # its answer would be taken for the next one's
                raise
            finally:
                if not connection.is_open:
                    self._all.discard(connection)
            if connection.is_open:
                self._idle.append(connection)
            return response

    def _unused(self) -> Connection | None:
        """The connection that was used last, so that what is not needed stays unused and ends."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._all.discard(connection)
        return None

    async def _connect(self) -> Connection:
        server_name = self._server_name if self._tls is not None else None
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, self._host, self._port, ssl=self._tls, server_hostname=server_name
            )
        return connection


def read_answer(response: Response) -> Answer:
    """What an answer says.

    Raises:
        ValueError: not this form; a subclass of it, :class:`KeyError` or :class:`TypeError` likewise.
    """
    if response.json_size is None:
        raise ValueError("tensors are not sent as bytes: this server needs to be asked over gRPC")
    said = orjson.loads(response.body[: response.json_size])
    outputs: dict[str, Output] = {}
    begin = response.json_size
    for output in said["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if size < 0:
            raise ValueError(f"a tensor of {size} bytes")
        end = begin + size
        outputs[output["name"]] = (output["datatype"], tuple(output["shape"]), response.body[begin:end])
        begin = end
    if begin != len(response.body):
        raise ValueError(f"{begin} bytes are announced, {len(response.body)} are there")
    return Answer(str(said.get("model_version", "")), outputs)


def _right(response: Response) -> Response:
    if response.status == OK:
        return response
    text = " ".join(response.body[:300].decode(errors="replace").split())
    raise StatusError(response.status, text)


def _context(tls: ClientTlsConfig | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.root_certificates if tls else None)
        if tls is not None and tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.private_key)
    except OSError as error:  # what is wrong in a file is an SSLError, which is one
        raise ConfigurationError(f"tls: cannot read its certificates or its key: {error}") from error
    return context
