"""The value network behind a running Triton, as ``sweep`` asks it: the very model that answers live requests.

Scoring a log must not take the server from live traffic. So there is one request under way at a time, of
few rows, which is the longest that a live request can wait for it, in the lowest priority where the model
has levels; and between requests the scorer is silent, so that it uses no more than a share of the server.
When its requests take longer than the fastest did at the start, others are being served, and it steps
back further (:class:`Pace`).

The server is asked again and again which model file it serves: a roll-out in the middle of a sweep ends it.

Shape legend: n rows, A actions, M objectives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from triton_models.config_pbtxt import MODEL_SHA256
from triton_models.errors import SurfaceMismatchError, UpstreamInvalidError, UpstreamUnavailableError
from triton_models.tensors import VALUE_NETWORK, state_specs

if TYPE_CHECKING:
    from torch import Tensor

    from triton_models.remote import RemoteServer
    from triton_models.runs import Run

T = TypeVar("T")

BATCH_ROWS = 16
SHARE = 0.5
SLOW = 2.0
"""So many times the usual time of a request mean that the server is busy with others."""
LARGEST_BACK_OFF = 20.0
BASELINE_REQUESTS = 20
ATTEMPTS = 10
RETRY_S = 1.0
"""A supervised server that died is back within ten seconds."""


@dataclass
class Pace:
    """How long to be silent after a request: ``usual · (back-off / share - 1)``.

    The back-off doubles with every request that took more than :data:`SLOW` times the usual one, and falls
    by a tenth with every other one, down to 1. It holds for every share, 1 included.
    """

    share: float = SHARE
    """Most of the time in which a request of the scorer may be under way."""
    usual_s: float = math.inf
    """The fastest request so far."""
    back_off: float = 1.0

    def silence_after(self, took_s: float) -> float:
        """Seconds."""
        self.usual_s = min(self.usual_s, took_s)
        slow = took_s > SLOW * self.usual_s
        self.back_off = min(LARGEST_BACK_OFF, self.back_off * 2) if slow else max(1.0, self.back_off * 0.9)
        return self.usual_s * (self.back_off / self.share - 1.0)


class ServedNetwork:
    """Answers like :meth:`triton_models.network.ValueNetwork.action_values`; travels to a Ray task.

    Args:
        url: ``host:port`` of a Triton server's gRPC endpoint.
        objectives: their number, M.
        batch_rows: rows of a request.
        share: see :class:`Pace`.
        sleep: for tests.
    """

    def __init__(
        self,
        url: str,
        objectives: int,
        *,
        batch_rows: int = BATCH_ROWS,
        share: float = SHARE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self.objectives = objectives
        self.batch_rows = batch_rows
        self.pace = Pace(share)
        self.priority = 0
        self._model_sha256: str | None = None
        self._sleep = sleep
        self._server: RemoteServer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A connection does not travel."""
        return {**self.__dict__, "_server": None}

    def _connected(self) -> RemoteServer:
        if self._server is None:
            from triton_models.remote import RemoteServer

            self._server = RemoteServer(self.url)
        return self._server

    def require_run(self, run: Run) -> None:
        """Refuse a server that serves something else.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamInvalidError: it serves no value network, or that of another run.
            SurfaceMismatchError: it serves another surface.
        """
        server = self._connected()
        server.require_live()
        served = server.served(VALUE_NETWORK)
        if served is None:
            raise UpstreamInvalidError(f"{self.url}: serves no model {VALUE_NETWORK}")
        told = served.parameters
        if told.get("surface_fingerprint") != run.surface.fingerprint:
            raise SurfaceMismatchError(
                f"{self.url}: serves surface {str(told.get('surface_fingerprint'))[:12]}, the run has "
                f"{run.surface.fingerprint[:12]}; serve the run (python -m triton_models rollout)"
            )
        if told.get("run_id") != run.manifest.run_id:
            raise UpstreamInvalidError(
                f"{self.url}: serves run {told.get('run_id')}, not {run.manifest.run_id}; serve the run "
                "(python -m triton_models rollout), or sweep the run that is served"
            )
        self.batch_rows = max(1, min(self.batch_rows, served.config.max_batch_size))
        self.priority = int(served.config.dynamic_batching.priority_levels)
        self._model_sha256 = told.get(MODEL_SHA256)
        self._learn_usual_time(run)

    def _learn_usual_time(self, run: Run) -> None:
        """The fastest of some requests goes with this object to every task."""
        zeros = {
            spec.name: np.zeros((self.batch_rows, *spec.shape), dtype=spec.dtype)
            for spec in state_specs(run.surface)
        }
        for _ in range(BASELINE_REQUESTS):
            self._ask(zeros)

    def _require_same_model(self) -> None:
        served = self._connected().served(VALUE_NETWORK)
        told = served.parameters.get(MODEL_SHA256) if served is not None else None
        if told != self._model_sha256:
            raise UpstreamInvalidError(
                f"{self.url}: serves another model than when the sweep began; sweep again"
            )

    def action_values(self, state: Mapping[str, Tensor]) -> Tensor:
        """Q values of every grid action, [n, A, M]."""
        import torch

        self._patiently(self._require_same_model)
        arrays = {name: value.numpy() for name, value in state.items()}
        rows = len(arrays["user_embedding"])
        parts = []
        for start in range(0, rows, self.batch_rows):
            stop = start + self.batch_rows
            parts.append(
                self._ask({name: np.ascontiguousarray(value[start:stop]) for name, value in arrays.items()})
            )
        return torch.from_numpy(np.concatenate(parts))

    def _ask(self, part: dict[str, Any]) -> Any:
        even = np.ones((len(part["user_embedding"]), self.objectives), dtype=np.float32)
        inputs = {**part, "scalarization": even}

        def ask() -> Any:
            return self._connected().infer(VALUE_NETWORK, inputs, ["action_values"], priority=self.priority)

        began = time.perf_counter()
        values = self._patiently(ask)["action_values"]
        self._sleep(self.pace.silence_after(time.perf_counter() - began))
        if not np.isfinite(values).all():
            raise UpstreamInvalidError(f"{self.url}: answered NaN or infinity to a logged state")
        return values

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again while nobody answers: a server that is being replaced must not cost the sweep."""
        for _ in range(ATTEMPTS - 1):
            try:
                return ask()
            except UpstreamUnavailableError:
                self._sleep(RETRY_S)
        return ask()
