"""Supervision of an embedded server: probe it with real inferences, replace it when they fail.

The decision is a pure function of what has been seen; the thread only probes, waits and acts.
Readiness is not asked: it stays true when the process behind a model is dead.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from triton_models.errors import ConfigurationError, PutsError

logger = logging.getLogger(__name__)


class Supervised(Protocol):
    """What the supervisor needs of a server."""

    def is_alive(self) -> bool:
        """Whether its process runs."""

    def probe(self, timeout_s: float) -> bool:
        """Whether it answers real inferences."""

    def restart(self) -> None:
        """Replace it; raises PutsError."""

    @property
    def problem(self) -> str | None:
        """What the last probe found wrong."""


@dataclass(frozen=True, kw_only=True)
class SupervisorConfig:
    """When to probe and when to replace. Defaults replace a dead process or model in well under 10 s."""

    interval_s: float = 0.5
    """Pause between probes of a healthy server."""
    suspicious_interval_s: float = 0.25
    """Pause after a failed probe."""
    probe_timeout_s: float = 2.0
    """How long one probe waits for its answers."""
    failures: int = 2
    """Failed probes in a row before a live server is replaced; a dead process is replaced at once."""
    retry_s: float = 1.0
    """Pause after a replacement that did not start; doubled each time up to ``retry_limit_s``."""
    retry_limit_s: float = 10.0

    def __post_init__(self) -> None:
        times = (self.interval_s, self.suspicious_interval_s, self.probe_timeout_s, self.retry_s)
        if min(times) <= 0 or self.failures < 1 or self.retry_limit_s < self.retry_s:
            raise ConfigurationError(f"supervision needs positive times and failures ≥ 1, got {self}")


@dataclass(frozen=True)
class Watch:
    """What has been seen so far."""

    failures: int = 0
    """Failed probes in a row."""
    failed_replacements: int = 0
    """Replacements in a row that did not start."""


@dataclass(frozen=True)
class Decision:
    """What to do now, and how long to wait before looking again."""

    replace: bool
    wait_s: float


def after_probe(
    watch: Watch, config: SupervisorConfig, *, alive: bool, answers: bool
) -> tuple[Watch, Decision]:
    """(what was seen, the newest probe) → (what has now been seen, what to do)."""
    if alive and answers:
        return Watch(), Decision(False, config.interval_s)
    seen = replace(watch, failures=watch.failures + 1)
    if not alive or seen.failures >= config.failures:
        return seen, Decision(True, 0.0)
    return seen, Decision(False, config.suspicious_interval_s)


def after_replacement(watch: Watch, config: SupervisorConfig, *, started: bool) -> tuple[Watch, Decision]:
    """The same after an attempt to replace the server: back-off while it does not start."""
    if started:
        return Watch(), Decision(False, config.interval_s)
    wait_s = min(config.retry_s * 2.0**watch.failed_replacements, config.retry_limit_s)
    # One more failed probe will do, since a server that did not start is not alive.
    return Watch(0, min(watch.failed_replacements + 1, 30)), Decision(False, wait_s)


class Supervisor:
    """A thread that keeps one server working. Start it after the server, stop it before."""

    def __init__(self, server: Supervised, config: SupervisorConfig | None = None) -> None:
        self.config = config or SupervisorConfig()
        self.replacements = 0
        """Servers replaced so far."""
        self.last_problem: str | None = None
        """Why the last replacement was made, or why it failed."""
        self._server = server
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start watching."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name="triton-supervisor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching; waits for a replacement under way, so that the server can be stopped next."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        watch = Watch()
        while not self._stop.is_set():
            answers = self._probe()
            watch, decision = after_probe(watch, self.config, alive=self._server.is_alive(), answers=answers)
            if decision.replace and not self._stop.is_set():
                watch, decision = self._replace(watch)
            self._stop.wait(decision.wait_s)

    def _probe(self) -> bool:
        try:
            return self._server.probe(self.config.probe_timeout_s)
        except Exception:  # this thread must not end: nobody else would replace the server
            logger.exception("the probe of tritonserver broke")
            return False

    def _replace(self, watch: Watch) -> tuple[Watch, Decision]:
        self.last_problem = self._server.problem
        logger.warning("replacing tritonserver: %s", self.last_problem)
        began = time.monotonic()
        try:
            self._server.restart()
        except PutsError as error:
            self.last_problem = str(error)
            logger.error("the replacement did not start: %s", error)
            return after_replacement(watch, self.config, started=False)
        except Exception as error:  # a full disk, no more processes: tried again, like any other failure
            self.last_problem = repr(error)
            logger.exception("the replacement did not start")
            return after_replacement(watch, self.config, started=False)
        self.replacements += 1
        logger.warning("tritonserver works again after %.1f s", time.monotonic() - began)
        return after_replacement(watch, self.config, started=True)
