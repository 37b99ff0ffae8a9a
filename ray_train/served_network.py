"""The value network behind a running Triton, as ``sweep`` asks it: the very model that answers live requests.

Scoring a log must not take the server from live traffic. So there is one request under way at a time, of
few rows, which is the longest that a live request can wait for it; and between requests the scorer is
silent, so that it uses no more than a share of the server (:class:`Pace`). When its own requests take
longer than they did on the idle server, others are being served, and it steps back further.

Shape legend: n rows, A actions, M objectives.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from triton_models.errors import SurfaceMismatchError, UpstreamInvalidError
from triton_models.tensors import VALUE_NETWORK

if TYPE_CHECKING:
    from torch import Tensor

    from triton_models.remote import RemoteServer
    from triton_models.runs import Run

BATCH_ROWS = 16
SHARE = 0.5
SLOW = 2.0
"""So many times the usual time of a request mean that the server is busy with others."""
LARGEST_BACK_OFF = 20.0
REMEMBERED = 200


@dataclass
class Pace:
    """How long to be silent after a request: ``took · (1 / share - 1) · back-off``.

    The back-off doubles with every request that took more than :data:`SLOW` times the fastest tenth of the
    last ones, and falls by a tenth with every other one, down to 1.
    """

    share: float = SHARE
    """Most of the time in which a request of the scorer may be under way."""
    back_off: float = 1.0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def silence_after(self, took_s: float) -> float:
        """Seconds."""
        self._times.append(took_s)
        usual = sorted(self._times)[len(self._times) // 10]
        slow = took_s > SLOW * usual
        self.back_off = min(LARGEST_BACK_OFF, self.back_off * 2) if slow else max(1.0, self.back_off * 0.9)
        return usual * (1.0 / self.share - 1.0) * self.back_off


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

    def action_values(self, state: Mapping[str, Tensor]) -> Tensor:
        """Q values of every grid action, [n, A, M]."""
        import torch

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
        server = self._connected()
        count = len(part["user_embedding"])
        part["scalarization"] = np.ones((count, self.objectives), dtype=np.float32)
        began = time.perf_counter()
        values = server.infer(VALUE_NETWORK, part, ["action_values"])["action_values"]
        self._sleep(self.pace.silence_after(time.perf_counter() - began))
        if not np.isfinite(values).all():
            raise UpstreamInvalidError(f"{self.url}: answered NaN or infinity to a logged state")
        return values
