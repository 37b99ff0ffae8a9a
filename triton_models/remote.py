"""A running Triton server, embedded or anybody's, over gRPC: what roll-out and verification need of it.

Deadlines are long and nothing is cancelled: short ones and cancellation can crash Triton 2.51.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from triton_models.config_pbtxt import config_parameters
from triton_models.errors import (
    ConfigurationError,
    UpstreamError,
    UpstreamInvalidError,
    UpstreamUnavailableError,
)
from triton_models.parity import Inputs
from triton_models.probe import RPC_TIMEOUT_S, ModelProbe, import_grpc
from triton_models.tensors import NUMPY_DTYPES, TensorSpec

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 900.0
"""Loading may build a TensorRT engine."""


@dataclass(frozen=True)
class ServedModel:
    """What a server says about one model that it serves."""

    versions: tuple[int, ...]
    """Versions that answer."""
    config: ModelConfig
    parameters: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    """Shapes without the batch dimension."""
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Statistics:
    """Counters of one model since it was loaded; times are sums over requests, in seconds."""

    requests: int = 0
    inferences: int = 0
    executions: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0

    def since(self, before: Statistics) -> Statistics:
        """What came after ``before``."""
        return Statistics(
            self.requests - before.requests,
            self.inferences - before.inferences,
            self.executions - before.executions,
            self.queue_s - before.queue_s,
            self.compute_s - before.compute_s,
        )


@dataclass(frozen=True)
class Answered:
    """One request of :meth:`RemoteServer.infer_many`."""

    seconds: float
    problem: str | None


class RemoteServer:
    """One Triton server.

    Args:
        url: ``host:port`` of its gRPC endpoint.

    Raises:
        ConfigurationError: the address is none.
    """

    def __init__(self, url: str) -> None:
        self.url = grpc_address(url)
        self._grpc = import_grpc()
        self._client = self._grpc.InferenceServerClient(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def require_live(self) -> None:
        """Refuse a server that does not answer.

        Raises:
            UpstreamUnavailableError: nobody answers, or it is not live.
        """
        with self._mapped("server"):
            live = self._client.is_server_live(client_timeout=RPC_TIMEOUT_S)
        if not live:
            raise UpstreamUnavailableError(f"{self.url}: the server says that it is not live")

    def served(self, model: str) -> ServedModel | None:
        """What it serves under ``model``, or None."""
        if not self._ready(model):
            return None
        with self._mapped(model):
            config = self._client.get_model_config(model, client_timeout=RPC_TIMEOUT_S).config
            metadata = self._client.get_model_metadata(model, client_timeout=RPC_TIMEOUT_S)
        batched = config.max_batch_size > 0
        return ServedModel(
            versions=tuple(sorted(int(version) for version in metadata.versions)),
            config=config,
            parameters=config_parameters(config),
            inputs=_specs(metadata.inputs, batched),
            outputs=_specs(metadata.outputs, batched),
        )

    def _ready(self, model: str) -> bool:
        try:
            with self._mapped(model):
                return bool(self._client.is_model_ready(model, client_timeout=RPC_TIMEOUT_S))
        except UpstreamUnavailableError:
            raise
        except UpstreamError as error:  # some releases answer with an error where others say "not ready"
            logger.debug("%s", error)
            return False

    def load(self, model: str, config: str, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model with this configuration; returns when the new version answers.

        Args:
            files: Path → content: the model's folder, instead of the one in the server's repository.
        """
        override = {f"file:{path}": content for path, content in (files or {}).items()} or None
        with self._mapped(model):
            self._client.load_model(model, config=config, files=override, client_timeout=LOAD_TIMEOUT_S)

    def unload(self, model: str) -> None:
        """Unload a model; requests under way are still answered."""
        with self._mapped(model):
            self._client.unload_model(model, client_timeout=LOAD_TIMEOUT_S)

    def infer(self, model: str, arrays: Inputs, outputs: Sequence[str] = (), *, priority: int = 0) -> Inputs:
        """One request; all outputs unless some are named. Priority 0 is the model's default."""
        wanted = [self._grpc.InferRequestedOutput(name) for name in outputs] or None
        with self._mapped(model):
            result = self._client.infer(
                model,
                self._tensors(arrays),
                outputs=wanted,
                client_timeout=RPC_TIMEOUT_S,
                priority=priority,
            )
        try:
            return {item.name: result.as_numpy(item.name) for item in result.get_response().outputs}
        except ValueError as error:  # the right shape without data: NumPy ≥ 2 in a Python stub
            raise UpstreamInvalidError(f"{self.url}: {model} answers without data: {error}") from error

    def infer_many(
        self, model: str, requests: Sequence[Inputs], count: int, *, concurrency: int, outputs: Sequence[str]
    ) -> list[Answered]:
        """Send ``count`` requests, ``requests`` in turn, always ``concurrency`` of them under way."""
        wanted = [self._grpc.InferRequestedOutput(name) for name in outputs]
        ready = [self._tensors(arrays) for arrays in requests]
        answered: list[Answered] = []
        free: queue.SimpleQueue[None] = queue.SimpleQueue()

        def done(began: float, result: Any, error: Exception | None) -> None:  # tritonclient's names
            problem = None if error is None else " ".join(str(error).split())
            answered.append(Answered(time.perf_counter() - began, problem))
            free.put(None)

        for _ in range(concurrency):
            free.put(None)
        with self._mapped(model):
            for number in range(count):
                free.get()
                self._client.async_infer(
                    model,
                    ready[number % len(ready)],
                    callback=partial(done, time.perf_counter()),
                    outputs=wanted,
                    client_timeout=RPC_TIMEOUT_S,
                )
            for _ in range(concurrency):
                free.get()
        return answered

    def probe(self, model: str) -> str | None:
        """What is wrong with a model of which no cases are stored: one real inference of zeros."""
        with self._mapped(model):
            return ModelProbe(self._client, model).run(RPC_TIMEOUT_S)

    def statistics(self, model: str) -> Statistics:
        """Counters over all versions, of every client's requests."""
        with self._mapped(model):
            answer = self._client.get_inference_statistics(model, client_timeout=RPC_TIMEOUT_S)
        total = Statistics()
        for item in answer.model_stats:
            parts = item.inference_stats
            compute_ns = parts.compute_input.ns + parts.compute_infer.ns + parts.compute_output.ns
            total = Statistics(
                total.requests + parts.success.count,
                total.inferences + item.inference_count,
                total.executions + item.execution_count,
                total.queue_s + parts.queue.ns / 1e9,
                total.compute_s + compute_ns / 1e9,
            )
        return total

    def _tensors(self, arrays: Inputs) -> list[Any]:
        names = {np.dtype(dtype): name for name, dtype in NUMPY_DTYPES.items()}
        tensors = []
        for name, array in arrays.items():
            tensor = self._grpc.InferInput(name, list(array.shape), names[array.dtype])
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            tensors.append(tensor)
        return tensors

    @contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            message = " ".join(str(error.message() or error).split())
            status = str(error.status() or "")
            if "UNAVAILABLE" in status or "DEADLINE" in status:
                raise UpstreamUnavailableError(
                    f"{self.url}: no Triton answers ({message}); give host:port of its gRPC endpoint"
                ) from error
            if "not allowed" in message:
                message += "; the server must run with --model-control-mode=explicit"
            raise UpstreamError(f"{self.url}: {what}: {message}") from error


def grpc_address(url: str) -> str:
    """``host:port`` out of what a person types.

    Raises:
        ConfigurationError: it is not a gRPC address.
    """
    scheme, separator, rest = url.rpartition("://")
    host, colon, port = rest.rstrip("/").rpartition(":")
    if (separator and scheme != "grpc") or not colon or not host or not port.isdecimal():
        raise ConfigurationError(f"{url!r} is not the address of a gRPC endpoint; expected host:port")
    return f"{host}:{port}"


def _specs(tensors: Sequence[Any], batched: bool) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(item.name, item.datatype, tuple(item.shape)[1 if batched else 0 :]) for item in tensors
    )
