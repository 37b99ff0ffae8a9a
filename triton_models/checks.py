"""Does a model in a running server answer as its stored cases say?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from triton_models.config_pbtxt import config_parameters
from triton_models.errors import ParityError, RepositoryError, SurfaceError, UpstreamInvalidError
from triton_models.parity import (
    COMPARED,
    VALUE_TOLERANCE,
    VALUE_TOLERANCE_PARAMETER,
    Cases,
    Inputs,
    compare,
    load_cases,
)
from triton_models.published import CASES_FILE
from triton_models.surface import Surface

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    from triton_models.remote import ServedModel

CASES_PER_REQUEST = 16
SURFACE = "surface"
"""Parameter of a version: the control surface as JSON."""


class ModelServer(Protocol):
    """What a roll-out needs of a server; :class:`triton_models.remote.RemoteServer` is the real one."""

    url: str

    def require_live(self) -> None:
        """Refuse a server that does not answer."""

    def served(self, model: str) -> ServedModel | None:
        """What it serves under a name."""

    def load(self, model: str, config: str, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model."""

    def unload(self, model: str) -> None:
        """Unload a model."""

    def infer(self, model: str, arrays: Inputs, outputs: Sequence[str] = ()) -> Inputs:
        """One request."""

    def probe(self, model: str) -> str | None:
        """What is wrong with a model."""


@dataclass(frozen=True)
class StoredCheck:
    """The stored cases of a version, or one real inference where it has none."""

    stored: Cases | None
    surface: Surface | None
    tolerance: float
    max_batch_size: int

    @classmethod
    def of(cls, root: Path, model: str, config: ModelConfig, version: int) -> Self:
        """The check that a version carries.

        Raises:
            RepositoryError: it is a value network, and its cases or its surface cannot be read.
        """
        parameters = config_parameters(config)
        if SURFACE not in parameters:
            return cls(None, None, VALUE_TOLERANCE, config.max_batch_size)
        folder = root / model / str(version)
        return cls(
            load_cases(folder / CASES_FILE),
            surface_of(parameters, source=str(folder)),
            value_tolerance(parameters),
            config.max_batch_size,
        )

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return len(self.stored) if self.stored is not None else 0

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.cases} stored cases" if self.cases else "a real inference"

    def run(self, server: ModelServer, name: str) -> float | None:
        """The largest difference of a value; None where nothing is stored.

        Raises:
            ParityError: the model answers otherwise.
            UpstreamError: it does not answer.
        """
        if self.stored is None or self.surface is None:
            problem = server.probe(name)
            if problem is not None:
                raise UpstreamInvalidError(f"{server.url}: {problem}")
            return None
        got = answers(server, name, self.stored.inputs, max_batch_size=self.max_batch_size)
        try:
            return compare(self.surface, self.stored.expected, got, tolerance=self.tolerance)
        except ParityError as error:
            raise ParityError(f"{name}: {error}") from error


def surface_of(parameters: Mapping[str, str], *, source: str) -> Surface:
    """The control surface that a model carries.

    Raises:
        RepositoryError: none that can be read.
    """
    try:
        return Surface.from_dict(json.loads(parameters[SURFACE]), source=source)
    except (KeyError, ValueError, SurfaceError) as error:
        raise RepositoryError(f"{source}: carries no readable surface: {error}") from error


def value_tolerance(parameters: Mapping[str, str]) -> float:
    """Largest allowed difference of a value that a version was exported with."""
    try:
        return float(parameters.get(VALUE_TOLERANCE_PARAMETER, VALUE_TOLERANCE))
    except ValueError:
        return VALUE_TOLERANCE


def answers(server: ModelServer, name: str, inputs: Inputs, *, max_batch_size: int) -> Inputs:
    """A server's answers to many cases, a few per request."""
    total = len(next(iter(inputs.values())))
    size = max(1, min(CASES_PER_REQUEST, max_batch_size))
    parts = [
        server.infer(name, {key: array[i : i + size] for key, array in inputs.items()}, COMPARED)
        for i in range(0, total, size)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
