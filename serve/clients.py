"""The seam to the outside: two tiny protocols, and their adapters to KServe v2 (serve.channel).

Foreign errors become :class:`UpstreamUnavailableError` (nobody answered) or
:class:`UpstreamInvalidError` (something answered, and it was not an answer). Fakes are in
:mod:`serve.fakes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve.channel import InferenceChannel
from serve.config import RankerConfig, ValueNetworkConfig
from serve.decide import ValueAnswer
from serve.wire import Headers, InputSpec, Template, bytes_tensor
from triton_models.encoding import StateTensors
from triton_models.errors import UpstreamInvalidError
from triton_models.surface import FloatArray, Surface
from triton_models.tensors import TensorSpec, input_specs

Scores = npt.NDArray[Any]

Features = Mapping[str, memoryview]
"""Features of the candidates: the ranker's input name → its bytes, [n, …]."""

NO_FEATURES: Features = {}

NO_HEADERS: Headers = {}

VALUE_OUTPUTS = ("weights", "action", "values")
"""Triton ships only what is asked for: action_values stays on the server."""

TEMPLATES = 1024
"""Numbers of candidates, or of states, for which what stays the same of a request is kept."""

_SAMPLED = frozenset("13579bdf")
"""Last digit of a ``traceparent`` whose sampled flag is set."""


@dataclass(frozen=True, slots=True)
class ValueQuestion:
    """What the value network is asked for one request."""

    tensors: StateTensors
    scalarization_M: FloatArray
    headers: Headers

    @property
    def is_traced(self) -> bool:
        """Whether its trace is recorded: a call carries one trace context, so this one shares none."""
        return self.headers.get("traceparent", "")[-1:] in _SAMPLED


class ValueClient(Protocol):
    """One value-network server."""

    @property
    def name(self) -> str:
        """Address, for people."""

    @property
    def max_rows(self) -> int:
        """Most questions of one call, as far as is known."""

    @property
    def described_version(self) -> str | None:
        """The model version whose parameters :meth:`parameters` read last; None: it could not be told."""

    async def choose(
        self, tensors: StateTensors, scalarization_M: FloatArray, headers: Headers
    ) -> ValueAnswer:
        """Ask for the weights of one state."""

    async def choose_many(self, questions: Sequence[ValueQuestion]) -> Sequence[ValueAnswer]:
        """Ask for the weights of several states in one call; answers in the order of the questions."""

    async def parameters(self) -> dict[str, str]:
        """The served model's own parameters (``config.pbtxt``), the surface among them."""

    async def close(self) -> None:
        """Give the connection back."""


class RankerClient(Protocol):
    """One ranker."""

    @property
    def name(self) -> str:
        """Address, for people."""

    async def score(
        self,
        tensors: StateTensors,
        candidates: Sequence[Any],
        headers: Headers,
        features: Features = NO_FEATURES,
    ) -> Scores:
        """Scores of the candidates, [n, H]."""

    async def ready(self) -> bool:
        """Whether it says that it could answer."""

    async def close(self) -> None:
        """Give the connection back."""


def contiguous(spec: TensorSpec, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A state tensor as something that can be joined to bytes."""
    return np.ascontiguousarray(value, dtype=spec.dtype)


class TritonValueClient(InferenceChannel):
    """The value network behind a Triton server."""

    def __init__(self, surface: Surface, config: ValueNetworkConfig, address: str) -> None:
        super().__init__(address, config.model, config.rpc_timeout_s, config.tls)
        self._inputs = input_specs(surface)
        *self._state, self._scalarization = self._inputs
        self._template = lru_cache(maxsize=TEMPLATES)(self._make_template)

    def _make_template(self, rows: int) -> Template:
        inputs = [InputSpec(s.name, s.datatype, (rows, *s.shape)) for s in self._inputs]
        return self.wire.template(inputs, VALUE_OUTPUTS)

    async def choose(
        self, tensors: StateTensors, scalarization_M: FloatArray, headers: Headers
    ) -> ValueAnswer:
        """Ask for the weights of one state.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: an error, or tensors that are not the contract's, came back.
        """
        (answer,) = await self.choose_many([ValueQuestion(tensors, scalarization_M, headers)])
        return answer

    async def choose_many(self, questions: Sequence[ValueQuestion]) -> list[ValueAnswer]:
        """Ask for the weights of several states in one call, each with its own scalarization.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: an error, or tensors that are not the contract's, came back.
        """
        rows = len(questions)
        contents = [[contiguous(spec, q.tensors[spec.name]) for q in questions] for spec in self._state]
        contents.append([contiguous(self._scalarization, q.scalarization_M) for q in questions])
        headers = questions[0].headers if rows == 1 else NO_HEADERS
        version, tensors = await self.infer(self._template(rows).filled(contents), VALUE_OUTPUTS, headers)
        weights, action, values = tensors
        fits = all(array.ndim == 2 and len(array) == rows for array in (weights, values))
        if action.size != rows or action.dtype.kind not in "iu" or not fits:
            raise UpstreamInvalidError(
                f"{self.who}: expected {'one answer' if rows == 1 else f'{rows} answers'}, got shapes "
                f"{list(weights.shape)}, {list(action.shape)}, {list(values.shape)}"
            )
        return [
            ValueAnswer(weights_W=weights[row], action=number, values_M=values[row], version=version)
            for row, number in enumerate(action.ravel().tolist())
        ]


class TritonRankerClient(InferenceChannel):
    """A ranker behind a KServe v2 endpoint."""

    def __init__(self, surface: Surface, config: RankerConfig, address: str) -> None:
        super().__init__(address, config.model, config.rpc_timeout_s, config.tls)
        self._config = config
        self._state_inputs = ranker_state_inputs(surface, config)
        self._specs = {spec.name: spec for spec in input_specs(surface)}
        self._state = [self._specs[state] for state in self._state_inputs]
        self._num_heads = len(config.heads or surface.heads)
        self._outputs = (config.output,)
        self._template = lru_cache(maxsize=TEMPLATES)(self._make_template)

    def _make_template(self, num_candidates: int) -> Template:
        batch = (1,) if self._config.batched else ()
        inputs = [
            InputSpec(name, self._specs[state].datatype, (*batch, *self._specs[state].shape))
            for state, name in self._state_inputs.items()
        ]
        shape = (*batch, num_candidates)
        inputs.append(InputSpec(self._config.candidates_input, self._config.candidates_type, shape))
        inputs += (
            InputSpec(name, feature.datatype, (*shape, *feature.shape))
            for name, feature in self._config.candidate_inputs.items()
        )
        return self.wire.template(inputs, self._outputs)

    async def score(
        self,
        tensors: StateTensors,
        candidates: Sequence[Any],
        headers: Headers,
        features: Features = NO_FEATURES,
    ) -> Scores:
        """Scores of the candidates, [n, H], finite.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: an error, a wrong shape, or NaN came back.
        """
        contents: list[list[Any]] = [[contiguous(spec, tensors[spec.name])] for spec in self._state]
        contents.append([self._candidates(candidates)])
        contents += ([features[name]] for name in self._config.candidate_inputs)
        request = self._template(len(candidates)).filled(contents)
        _, (scores,) = await self.infer(request, self._outputs, headers)
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
        return scores

    def _candidates(self, candidates: Sequence[Any]) -> bytes:
        if self._config.candidates_type == "INT64":
            return np.array(candidates, dtype=np.int64).tobytes()
        return bytes_tensor(candidates)


def ranker_state_inputs(surface: Surface, config: RankerConfig) -> dict[str, str]:
    """State tensor → the ranker's input name, defaults filled in."""
    if config.state_inputs is not None:
        return dict(config.state_inputs)
    names = {spec.name for spec in input_specs(surface)}
    return {name: name for name in ("user_embedding", "context") if name in names}
