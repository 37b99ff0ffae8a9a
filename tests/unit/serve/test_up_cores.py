"""Which cores a value network beside a ranker gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve import up
from triton_models.errors import ConfigurationError, ServerError
from triton_models.server import EmbeddedServer


@pytest.mark.parametrize(
    ("allowed", "found"),
    [({0}, ()), ({0, 1}, (1,)), ({2, 4, 9}, (9,)), (set(range(16)), tuple(range(8, 16)))],
)
def test_half_of_the_cores_beside_a_ranker(
    allowed: set[int], found: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert up.cores_beside_ranker() == found


def test_asked_for_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    assert up.last_cores(None) == ()
    assert up.last_cores(2) == (1, 5)
    for wrong in (0, 4):
        with pytest.raises(ConfigurationError, match="is 1 to 3 here"):
            up.last_cores(wrong)


def test_cores_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(ServerError, match="core 7 is not one that this process may use: 0, 1"):
        EmbeddedServer(tmp_path, cores=(1, 7))
