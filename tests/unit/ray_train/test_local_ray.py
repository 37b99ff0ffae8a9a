"""Starting a local Ray: one more try, then one line. Ray itself is not started here."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from ray_train.cluster import joined_ray
from triton_models.errors import ConfigurationError, ServerError
from triton_models.local_ray import start_local_ray


class FakeRay:
    """Fails so many times; notes what was called."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error = failures, error
        self.calls: list[Any] = []

    def init(self, **options: Any) -> None:
        self.calls.append(options)
        if self.failures:
            self.failures -= 1
            raise self.error

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def fake(monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception | None = None) -> FakeRay:
    found = FakeRay(failures, error or Exception("The current node timed out\n during startup."))
    monkeypatch.setattr(ray, "init", found.init)
    monkeypatch.setattr(ray, "shutdown", found.shutdown)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def test_a_slow_start_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake(monkeypatch, 1)
    start_local_ray(num_cpus=3, include_dashboard=True)
    first, between, second = found.calls
    assert between == "shutdown"
    assert first == second
    assert first["address"] == "local"
    assert (first["num_cpus"], first["include_dashboard"], first["log_to_driver"]) == (3, True, False)


def test_a_second_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake(monkeypatch, 2)
    message = "a local Ray did not start: The current node timed out during startup."
    with pytest.raises(ServerError, match=f"^{message}$"):
        start_local_ray()
    assert found.calls[1::2] == ["shutdown", "shutdown"]


def test_joining_starts_a_local_ray_with_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake(monkeypatch, 1)
    with joined_ray(cpus=2) as elsewhere:
        assert not elsewhere
        assert found.calls[-1]["num_cpus"] == 2
        assert found.calls.count("shutdown") == 1
    assert found.calls[-1] == "shutdown"


def test_an_address_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake(monkeypatch, 1, ConnectionError("nobody there"))
    message = r"^Ray cluster 10\.0\.0\.1:6379 cannot be used: nobody there$"
    with pytest.raises(ConfigurationError, match=message), joined_ray("10.0.0.1:6379"):
        pass
    with joined_ray("10.0.0.1:6379") as elsewhere:
        assert elsewhere
    assert [call if isinstance(call, str) else call["address"] for call in found.calls] == [
        "10.0.0.1:6379",
        "10.0.0.1:6379",
        "shutdown",
    ]
