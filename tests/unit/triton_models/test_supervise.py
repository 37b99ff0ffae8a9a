"""When a server is replaced: pure decisions, then the thread against a fake server."""

from __future__ import annotations

import logging
import time

import pytest

from triton_models.errors import ConfigurationError, ServerError
from triton_models.supervise import (
    Decision,
    Supervisor,
    SupervisorConfig,
    Watch,
    after_probe,
    after_replacement,
)

CONFIG = SupervisorConfig(interval_s=1.0, suspicious_interval_s=0.25, failures=2, retry_s=1, retry_limit_s=10)


def test_a_healthy_server_is_left_alone() -> None:
    assert after_probe(Watch(1, 3), CONFIG, alive=True, answers=True) == (Watch(), Decision(False, 1.0))


def test_one_failed_probe_is_a_suspicion_two_are_a_fact() -> None:
    watch, decision = after_probe(Watch(), CONFIG, alive=True, answers=False)
    assert decision == Decision(False, 0.25)
    assert after_probe(watch, CONFIG, alive=True, answers=False)[1].replace
    watch, _ = after_probe(watch, CONFIG, alive=True, answers=True)
    assert not after_probe(watch, CONFIG, alive=True, answers=False)[1].replace


def test_a_dead_process_is_replaced_at_once() -> None:
    assert after_probe(Watch(), CONFIG, alive=False, answers=False)[1] == Decision(True, 0.0)


def test_failed_replacements_are_retried_ever_more_slowly() -> None:
    watch, waits = Watch(), []
    for _ in range(7):
        watch, decision = after_probe(watch, CONFIG, alive=False, answers=False)
        assert decision.replace
        watch, decision = after_replacement(watch, CONFIG, started=False)
        waits.append(decision.wait_s)
    assert waits == [1, 2, 4, 8, 10, 10, 10]
    assert after_replacement(watch, CONFIG, started=True) == (Watch(), Decision(False, 1.0))


@pytest.mark.parametrize("changes", [{"interval_s": 0}, {"failures": 0}, {"retry_limit_s": 0.1}])
def test_impossible_settings(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        SupervisorConfig(**changes)  # type: ignore[arg-type]


class FakeServer:
    """Answers until broken; the first replacement fails."""

    def __init__(self) -> None:
        self.works = True
        self.restarts = 0
        self.problem: str | None = None

    def is_alive(self) -> bool:
        return self.works

    def probe(self, timeout_s: float) -> bool:
        self.problem = None if self.works else "broken"
        return self.works

    def restart(self) -> None:
        self.restarts += 1
        if self.restarts == 1:
            raise ServerError("no room")
        self.works = True


def test_the_thread_replaces_and_goes_on_when_a_replacement_fails() -> None:
    server = FakeServer()
    config = SupervisorConfig(interval_s=0.01, suspicious_interval_s=0.01, retry_s=0.01)
    with Supervisor(server, config) as supervisor:
        time.sleep(0.05)
        assert (server.restarts, supervisor.last_problem) == (0, None)
        server.works = False
        deadline = time.monotonic() + 10
        while supervisor.replacements == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (supervisor.replacements, server.restarts, supervisor.last_problem) == (1, 2, "broken")
    server.works = False
    time.sleep(0.05)
    assert server.restarts == 2, "a stopped supervisor does nothing"


class BrokenServer(FakeServer):
    """The first probe and the first replacement break in a way that nobody foresaw."""

    probes = 0

    def probe(self, timeout_s: float) -> bool:
        self.probes += 1
        if self.probes == 1:
            raise RuntimeError("a bug of a library")
        return super().probe(timeout_s)

    def restart(self) -> None:
        self.restarts += 1
        if self.restarts == 1:
            raise OSError(28, "No space left on device")
        self.works = True


def test_the_thread_outlives_what_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    server = BrokenServer()
    server.works = False
    config = SupervisorConfig(interval_s=0.01, suspicious_interval_s=0.01, retry_s=0.01)
    with caplog.at_level(logging.ERROR), Supervisor(server, config) as supervisor:
        deadline = time.monotonic() + 10
        while supervisor.replacements == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (supervisor.replacements, server.restarts) == (1, 2)
    assert "No space left on device" in caplog.text
    assert "a bug of a library" in caplog.text
