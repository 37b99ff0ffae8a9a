"""The seam to the outside: two tiny protocols, and their adapters to KServe v2 over gRPC (tritonclient).

Foreign errors become :class:`UpstreamUnavailableError` (nobody answered) or
:class:`UpstreamInvalidError` (something answered, and it was not an answer). Fakes are in
:mod:`serve.fakes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton_grpc
from tritonclient.utils import InferenceServerException

from serve.config import RankerConfig, ValueNetworkConfig
from serve.decide import ValueAnswer
from triton_models.encoding import StateTensors
from triton_models.errors import UpstreamError, UpstreamInvalidError, UpstreamUnavailableError
from triton_models.surface import FloatArray, Surface
from triton_models.tensors import TensorSpec, input_specs

Headers = Mapping[str, str]
"""gRPC metadata passed on, for example W3C trace context."""

Scores = npt.NDArray[Any]

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
]

_OUR_REQUEST_DOES_NOT_FIT = "StatusCode.INVALID_ARGUMENT"

CHECK_TIMEOUT_S = 10.0


class ValueClient(Protocol):
    """One value-network server."""

    @property
    def name(self) -> str:
        """Address, for people."""

    async def choose(
        self, tensors: StateTensors, scalarization_M: FloatArray, headers: Headers
    ) -> ValueAnswer:
        """Ask for the weights of one state."""

    async def parameters(self) -> dict[str, str]:
        """The served model's own parameters (``config.pbtxt``), the surface among them."""

    async def close(self) -> None:
        """Give the connection back."""


class RankerClient(Protocol):
    """One ranker."""

    @property
    def name(self) -> str:
        """Address, for people."""

    async def score(self, tensors: StateTensors, candidates: Sequence[Any], headers: Headers) -> Scores:
        """Scores of the candidates, [n, H]."""

    async def ready(self) -> bool:
        """Whether it says that it could answer."""

    async def close(self) -> None:
        """Give the connection back."""


def _mapped(error: Exception, who: str) -> UpstreamError:
    """A foreign error as one of ours."""
    text = " ".join(str(error).split())[:300]
    if not isinstance(error, (InferenceServerException, OSError)):
        return UpstreamInvalidError(f"{who}: unreadable answer: {error!r}")
    if isinstance(error, InferenceServerException) and error.status() == _OUR_REQUEST_DOES_NOT_FIT:
        return UpstreamInvalidError(f"{who}: {text}")
    return UpstreamUnavailableError(f"{who} gives no answer: {text}")


def _tensor(spec: TensorSpec, value: npt.NDArray[Any], name: str | None = None) -> Any:
    array = np.ascontiguousarray(value, dtype=spec.dtype)[np.newaxis]
    tensor = triton_grpc.InferInput(name or spec.name, list(array.shape), spec.datatype)
    return tensor.set_data_from_numpy(array)


class _TritonClient:
    """A reused channel to one address. Made inside the event loop that uses it."""

    def __init__(self, address: str, model: str, rpc_timeout_s: float) -> None:
        self.name = address
        self._model = model
        self._rpc_timeout_s = rpc_timeout_s
        self._client = triton_grpc.InferenceServerClient(address, channel_args=list(CHANNEL_OPTIONS))

    async def _infer(self, inputs: list[Any], outputs: list[str], headers: Headers) -> list[npt.NDArray[Any]]:
        who = f"{self._model} at {self.name}"
        try:
            result = await self._client.infer(
                self._model,
                inputs,
                # Triton ships only what is named here: action_values stays on the server.
                outputs=[triton_grpc.InferRequestedOutput(name) for name in outputs],
                client_timeout=self._rpc_timeout_s,
                headers=dict(headers) or None,
            )
            arrays = [result.as_numpy(name) for name in outputs]
        except Exception as error:  # the seam: whatever a foreign library throws ends here
            raise _mapped(error, who) from error
        for name, array in zip(outputs, arrays, strict=True):
            if array is None:
                raise UpstreamInvalidError(f"{who}: the answer has no output {name}")
        return arrays

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


class TritonValueClient(_TritonClient):
    """The value network behind a Triton server."""

    def __init__(self, surface: Surface, config: ValueNetworkConfig, address: str) -> None:
        super().__init__(address, config.model, config.rpc_timeout_s)
        *self._state_specs, self._scalarization_spec = input_specs(surface)

    async def choose(
        self, tensors: StateTensors, scalarization_M: FloatArray, headers: Headers
    ) -> ValueAnswer:
        """Ask for the weights of one state.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: an error, or tensors that are not the contract's, came back.
        """
        inputs = [_tensor(spec, tensors[spec.name]) for spec in self._state_specs]
        inputs.append(_tensor(self._scalarization_spec, scalarization_M))
        weights, action, values = await self._infer(inputs, ["weights", "action", "values"], headers)
        single = all(array.ndim == 2 and len(array) == 1 for array in (weights, values))
        if action.size != 1 or action.dtype.kind not in "iu" or not single:
            raise UpstreamInvalidError(
                f"{self._model} at {self.name}: expected one answer, got shapes "
                f"{list(weights.shape)}, {list(action.shape)}, {list(values.shape)}"
            )
        return ValueAnswer(weights_W=weights[0], action=int(action.flat[0]), values_M=values[0])

    async def parameters(self) -> dict[str, str]:
        """Parameters of the served model.

        Raises:
            UpstreamUnavailableError: nobody answers, or the model is not loaded.
        """
        try:
            response = await self._client.get_model_config(self._model, client_timeout=CHECK_TIMEOUT_S)
        except Exception as error:  # the seam
            raise UpstreamUnavailableError(str(_mapped(error, f"{self._model} at {self.name}"))) from error
        return {name: value.string_value for name, value in response.config.parameters.items()}


class TritonRankerClient(_TritonClient):
    """A ranker behind a KServe v2 endpoint."""

    def __init__(self, surface: Surface, config: RankerConfig, address: str) -> None:
        super().__init__(address, config.model, config.rpc_timeout_s)
        self._config = config
        self._state_inputs = ranker_state_inputs(surface, config)
        self._specs = {spec.name: spec for spec in input_specs(surface)}
        self._num_heads = len(config.heads or surface.heads)

    async def score(self, tensors: StateTensors, candidates: Sequence[Any], headers: Headers) -> Scores:
        """Scores of the candidates, [n, H], finite.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: an error, a wrong shape, or NaN came back.
        """
        inputs = [
            _tensor(self._specs[state], tensors[state], name) for state, name in self._state_inputs.items()
        ]
        inputs.append(self._candidates(candidates))
        if not self._config.batched:
            for tensor in inputs:
                tensor.set_shape(tensor.shape()[1:])
        (scores,) = await self._infer(inputs, [self._config.output], headers)
        if self._config.batched and scores.ndim == 3 and len(scores) == 1:
            scores = scores[0]
        if scores.shape != (len(candidates), self._num_heads):
            raise UpstreamInvalidError(
                f"ranker at {self.name}: expected scores of shape {[len(candidates), self._num_heads]}, "
                f"got {list(scores.shape)}"
            )
        if scores.dtype.kind not in "fiu":
            raise UpstreamInvalidError(f"ranker at {self.name}: scores are {scores.dtype}, not numbers")
        if not np.isfinite(scores).all():
            raise UpstreamInvalidError(f"ranker at {self.name}: scores hold NaN or infinity")
        return np.asarray(scores)

    def _candidates(self, candidates: Sequence[Any]) -> Any:
        kind = self._config.candidates_type
        if kind == "INT64":
            array = np.array([candidates], dtype=np.int64)
        else:
            array = np.array([[item.encode() for item in candidates]], dtype=np.object_)
        tensor = triton_grpc.InferInput(self._config.candidates_input, list(array.shape), kind)
        return tensor.set_data_from_numpy(array)

    async def ready(self) -> bool:
        """Whether the server says that the model is ready."""
        try:
            return bool(await self._client.is_model_ready(self._model, client_timeout=CHECK_TIMEOUT_S))
        except Exception:  # the seam; whatever it is, the ranker is not ready
            return False


def ranker_state_inputs(surface: Surface, config: RankerConfig) -> dict[str, str]:
    """State tensor → the ranker's input name, defaults filled in."""
    if config.state_inputs is not None:
        return dict(config.state_inputs)
    names = {spec.name for spec in input_specs(surface)}
    return {name: name for name in ("user_embedding", "context") if name in names}
