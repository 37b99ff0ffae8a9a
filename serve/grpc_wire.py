"""Open Inference Protocol (KServe v2) over gRPC, as cheap as it can be made in Python.

``ModelInferRequest`` is a protobuf message, and protobuf's own rule is used: *the concatenation of two
encodings of a message is the encoding of the merged message*. All that stays the same from request to
request (model, names, types and shapes of the inputs, wanted outputs) is encoded once; per request only
the tensors' bytes are appended, each as one entry of ``raw_input_contents``::

    prefix ‖ 0x3a ‖ varint(len) ‖ bytes ‖ 0x3a ‖ varint(len) ‖ bytes …

which is what tritonclient builds with a message object per tensor. A test parses the result back with the
real message class and holds it equal to tritonclient's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serve.answer_layout import AnswerReader, varint
from serve.config import ClientTlsConfig
from serve.wire import (
    CHECK_TIMEOUT_S,
    Answer,
    Contents,
    Description,
    Headers,
    InputSpec,
    silent,
    size_of,
    unreadable,
)
from triton_models.errors import ConfigurationError, UpstreamError, UpstreamRefusedError

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


class GrpcTemplate:
    """The part of a ``ModelInferRequest`` that is encoded once."""

    def __init__(self, model: str, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> None:
        request = service_pb2.ModelInferRequest(model_name=model)
        for spec in inputs:
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for name in outputs:
            request.outputs.add(name=name)
        self._prefix: bytes = request.SerializeToString()
        # Most sizes are known, and so is what stands before these contents.
        self._marks = [(size, _mark(size or 0)) for size in (spec.size for spec in inputs)]

    def filled(self, contents: Contents) -> bytes:
        """The whole message."""
        parts: list[Any] = [self._prefix]
        for (expected, mark), buffers in zip(self._marks, contents, strict=True):
            size = size_of(buffers)
            parts.append(mark if size == expected else _mark(size))
            parts += buffers
        return b"".join(parts)


def _mark(size: int) -> bytes:
    return _RAW_INPUT_CONTENTS + varint(size)


class GrpcWire:
    """A channel of asyncio's. It connects when it is used.

    Raises:
        ConfigurationError: a certificate or key cannot be read.
    """

    def __init__(self, address: str, model: str, rpc_timeout_s: float, tls: ClientTlsConfig | None) -> None:
        self._model = model
        self._rpc_timeout_s = rpc_timeout_s
        self._channel = open_channel(address, tls)
        # No serializers: what is sent is bytes already, and what comes back is read by its layout.
        self.call: Any = self._channel.unary_unary(INFER)
        self._reader = AnswerReader()
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def template(self, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> GrpcTemplate:
        """See :class:`serve.wire.Wire`."""
        return GrpcTemplate(self._model, inputs, outputs)

    async def infer(self, request: bytes, headers: Headers) -> Answer:
        """See :class:`serve.wire.Wire`."""
        metadata = tuple(headers.items()) or None
        return self._reader.read(await self.call(request, timeout=self._rpc_timeout_s, metadata=metadata))

    async def describe(self) -> Description:
        """See :class:`serve.wire.Wire`."""
        request = service_pb2.ModelConfigRequest(name=self._model)
        config = (await self._stub.ModelConfig(request, timeout=CHECK_TIMEOUT_S)).config
        named = config.version_policy.specific.versions
        return Description(
            parameters={name: value.string_value for name, value in config.parameters.items()},
            max_batch_size=config.max_batch_size,
            version=str(named[0]) if len(named) == 1 else None,
        )

    async def ready(self) -> bool:
        """See :class:`serve.wire.Wire`."""
        request = service_pb2.ModelReadyRequest(name=self._model)
        try:
            return bool((await self._stub.ModelReady(request, timeout=CHECK_TIMEOUT_S)).ready)
        except Exception:  # the seam; whatever it is, the model is not ready
            return False

    def mapped(self, error: Exception, who: str) -> UpstreamError:
        """See :class:`serve.wire.Wire`."""
        if isinstance(error, grpc.aio.AioRpcError):
            text = " ".join(f"{error.code().name}: {error.details()}".split())[:300]
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                return UpstreamRefusedError(f"{who}: {text}")
            return silent(who, text)
        if isinstance(error, OSError | grpc.aio.UsageError):
            return silent(who, error)
        return unreadable(who, error)

    async def close(self) -> None:
        """See :class:`serve.wire.Wire`."""
        await self._channel.close()


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
