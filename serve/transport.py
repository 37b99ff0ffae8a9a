"""Open Inference Protocol (KServe v2) over gRPC, as cheap as it can be made in Python.

``ModelInferRequest`` is a protobuf message, and protobuf's own rule is used: *the concatenation of two
encodings of a message is the encoding of the merged message*. All that stays the same from request to
request (model, names, types and shapes of the inputs, wanted outputs) is encoded once; per request only
the tensors' bytes are appended, each as one entry of ``raw_input_contents``::

    prefix ‖ 0x3a ‖ varint(len) ‖ bytes ‖ 0x3a ‖ varint(len) ‖ bytes …

which is what tritonclient builds with a message object per tensor. A test parses the result back with the
real message class and holds it equal to tritonclient's.

One channel per address is opened and reused. Nothing is cancelled, deadlines are long (serve.fanout says
why), and foreign errors become :class:`UpstreamError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serve.answer_layout import AnswerReader, varint
from serve.config import ClientTlsConfig
from triton_models.errors import (
    ConfigurationError,
    UpstreamError,
    UpstreamInvalidError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
)

Headers = Mapping[str, str]
"""gRPC metadata passed on, for example W3C trace context."""

INFER = "/inference.GRPCInferenceService/ModelInfer"

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A headless Service resolves to several servers; without this all calls stick to the first.
    ("grpc.lb_policy_name", "round_robin"),
    # gRPC's own back-off grows to two minutes; a server that is back must be found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    # A machine that is gone closes no connection: without a ping TCP finds out after a quarter of an hour.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]

_RAW_INPUT_CONTENTS = b"\x3a"
"""Field 7, length-delimited."""

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


@dataclass(frozen=True)
class InputSpec:
    """What stays the same of an input: name, datatype and shape, batch dimension included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def request_prefix(model: str, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> bytes:
    """The part of a ``ModelInferRequest`` that is encoded once."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for spec in inputs:
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for name in outputs:
        request.outputs.add(name=name)
    encoded: bytes = request.SerializeToString()
    return encoded


def raw_input_mark(size: int) -> bytes:
    """What stands before a content of so many bytes in ``raw_input_contents``."""
    return _RAW_INPUT_CONTENTS + varint(size)


def raw_input(content: bytes | memoryview) -> bytes:
    """One entry of ``raw_input_contents``."""
    return b"".join((raw_input_mark(len(content)), content))


def bytes_tensor(values: Sequence[str]) -> bytes:
    """A BYTES tensor: each element with its length in four bytes before it."""
    parts: list[bytes] = []
    for value in values:
        encoded = value.encode()
        parts += (len(encoded).to_bytes(4, "little"), encoded)
    return b"".join(parts)


def _credentials(tls: ClientTlsConfig) -> grpc.ChannelCredentials:
    def read(path: str | None) -> bytes | None:
        try:
            return None if path is None else Path(path).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"tls: cannot read {path}: {error}") from error

    return grpc.ssl_channel_credentials(
        root_certificates=read(tls.root_certificates),
        private_key=read(tls.private_key),
        certificate_chain=read(tls.certificate),
    )


def open_channel(address: str, tls: ClientTlsConfig | None) -> grpc.aio.Channel:
    """A channel of asyncio's. It connects when it is used.

    Raises:
        ConfigurationError: a certificate or key cannot be read.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    options = list(CHANNEL_OPTIONS)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(address, _credentials(tls), options=options)


def mapped(error: Exception, who: str) -> UpstreamError:
    """A foreign error as one of ours."""
    if isinstance(error, grpc.aio.AioRpcError):
        text = " ".join(f"{error.code().name}: {error.details()}".split())[:300]
        if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
            return UpstreamRefusedError(f"{who}: {text}")
        return UpstreamUnavailableError(f"{who} gives no answer: {text}")
    if isinstance(error, OSError | grpc.aio.UsageError):
        return UpstreamUnavailableError(f"{who} gives no answer: {error}")
    return UpstreamInvalidError(f"{who}: unreadable answer: {error!r}")


class InferenceChannel:
    """A reused channel to one model at one address. Made inside the event loop that uses it."""

    def __init__(
        self, address: str, model: str, rpc_timeout_s: float, tls: ClientTlsConfig | None = None
    ) -> None:
        self.name = address
        self.model = model
        self.who = f"{model} at {address}"
        self._rpc_timeout_s = rpc_timeout_s
        self._channel = open_channel(address, tls)
        # No serializers: what is sent is bytes already, and what comes back is read by its layout.
        self._infer = self._channel.unary_unary(INFER)
        self._reader = AnswerReader()
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.max_rows = 1
        """Most rows of a request: the model's ``max_batch_size``, once :meth:`parameters` has read it."""
        self.described_version: str | None = None
        """The version that :meth:`parameters` read of last; None: it named none, or several."""

    async def infer(
        self, request: bytes, outputs: Sequence[str], headers: Headers
    ) -> tuple[str, list[npt.NDArray[Any]]]:
        """Send one request; the version that answered, and the outputs in the order asked for.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: an error came back, or not these outputs.
        """
        try:
            answer = await self._infer(
                request, timeout=self._rpc_timeout_s, metadata=tuple(headers.items()) or None
            )
            version, found = self._reader.read(answer)
            return version, [_array(self.who, name, *found[name]) for name in outputs]
        except UpstreamError:
            raise
        except KeyError as error:
            raise UpstreamInvalidError(f"{self.who}: the answer has no output {error.args[0]}") from error
        except Exception as error:  # the seam: whatever a foreign library throws ends here
            raise mapped(error, self.who) from error

    async def parameters(self) -> dict[str, str]:
        """Parameters of the served model.

        Raises:
            UpstreamUnavailableError: nobody answers, or the model is not loaded.
        """
        request = service_pb2.ModelConfigRequest(name=self.model)
        try:
            response = await self._stub.ModelConfig(request, timeout=CHECK_TIMEOUT_S)
        except Exception as error:  # the seam
            raise UpstreamUnavailableError(str(mapped(error, self.who))) from error
        self.max_rows = max(1, response.config.max_batch_size)
        # A configuration names the version that it is of, as export writes it: no second call that could
        # already be answered by the next one.
        named = response.config.version_policy.specific.versions
        self.described_version = str(named[0]) if len(named) == 1 else None
        return {name: value.string_value for name, value in response.config.parameters.items()}

    async def ready(self) -> bool:
        """Whether the server says that the model is ready."""
        request = service_pb2.ModelReadyRequest(name=self.model)
        try:
            return bool((await self._stub.ModelReady(request, timeout=CHECK_TIMEOUT_S)).ready)
        except Exception:  # the seam; whatever it is, the model is not ready
            return False

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _array(who: str, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> npt.NDArray[Any]:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise UpstreamInvalidError(f"{who}: output {name} is {datatype}, not numbers")
    try:
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
    except ValueError as error:
        raise UpstreamInvalidError(
            f"{who}: output {name} has {len(raw)} bytes for {datatype} {list(shape)}"
        ) from error
