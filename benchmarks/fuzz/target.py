"""What is fuzzed where no address is given: the real application behind a real uvicorn, fakes behind it.

The fakes are moody, so that every way of falling back is on the path: of ten calls to the value network, six
are answered, the others are late, refused, rubbish, or end in an error that nobody expects.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn

from serve.api import create_app
from serve.clients import NO_FEATURES, Features, ValueQuestion
from serve.config import SidecarConfig
from serve.decide import ValueAnswer
from serve.fakes import FakeRankerClient, FakeValueClient
from serve.logs import LogConfig, line_handler
from serve.sidecar import Sidecar
from serve.wire import Headers
from triton_models.encoding import StateTensors
from triton_models.errors import BenchmarkError, UpstreamUnavailableError
from triton_models.surface import Surface

BUDGET_MS = 5.0
LIMITS = {"candidates": 20, "k": 10, "history": 30, "body_bytes": 64 * 1024, "body_timeout_s": 0.5}
"""Small, so that cases reach them."""


@dataclass
class MoodyValueClient(FakeValueClient):
    """A value network of changing mood, in a fixed order."""

    turn: Iterator[int] = field(default_factory=itertools.count)

    async def choose_many(self, questions: Sequence[ValueQuestion]) -> list[ValueAnswer]:
        """Answer, or one of the ways not to."""
        mood = next(self.turn) % 10
        if mood == 6:
            await asyncio.sleep(3 * BUDGET_MS / 1000)
        if mood == 7:
            raise UpstreamUnavailableError("in no mood")
        if mood == 8:
            raise ZeroDivisionError("an adapter's bug")
        answers = await super().choose_many(questions)
        self.calls.clear()
        self.rows.clear()
        if mood == 9:
            first = answers[0]
            rubbish = first.weights_W * np.float32(np.nan)
            answers[0] = ValueAnswer(weights_W=rubbish, action=-1, values_M=first.values_M)
        return answers


class ForgetfulRanker(FakeRankerClient):
    """Keeps no record of its calls: a long run must not fill the memory."""

    async def score(
        self, tensors: StateTensors, candidates: object, headers: Headers, features: Features = NO_FEATURES
    ) -> np.typing.NDArray[np.float64]:
        """Scores that grow with the position."""
        scores = await super().score(tensors, candidates, headers, features)  # type: ignore[arg-type]
        self.calls.clear()
        self.features.clear()
        return scores


def fuzzed_config(surface: Surface, store: Path) -> SidecarConfig:
    """Configuration of the target: whoever asks may change its policy."""
    return SidecarConfig.from_dict(
        {
            "surface": surface.to_dict(),
            "value_network": {"addresses": ["moody:1"], "budget_ms": BUDGET_MS, "retry_s": 0.01},
            "ranker": {"addresses": ["fake:1"]},
            "limits": LIMITS,
            "policy_store": {"url": f"sqlite:///{store / 'policies.sqlite'}"},
            "access": {"allow_local_changes": True},
        }
    )


@contextmanager
def _lines_unread() -> Iterator[None]:
    """Lines of log are made as in a replica, and not shown: thousands of bad requests are no news here."""
    handler = line_handler(LogConfig(), (), queue.Queue(1))
    loggers = [logging.getLogger(name) for name in ("serve", "uvicorn", "asyncio")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


@contextmanager
def target_running(surface: Surface) -> Iterator[str]:
    """The target's address; it runs in a thread of this process.

    Raises:
        BenchmarkError: it did not start.
    """

    def make(config: SidecarConfig) -> Sidecar:
        return Sidecar(
            config,
            value_clients=[MoodyValueClient(surface)],
            ranker_clients=[ForgetfulRanker(len(surface.heads))],
        )

    with _lines_unread(), tempfile.TemporaryDirectory() as store, socket.socket() as listener:
        app = create_app(fuzzed_config(surface, Path(store)), make)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            if time.monotonic() > deadline or not thread.is_alive():
                raise BenchmarkError("the application to fuzz did not start")
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
