from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve.policy_store import InForce, PolicyStore
from tests.support.store_checks import StoreChecks, draft
from triton_models.errors import ConfigurationError, StoreError


class TestSqlite(StoreChecks):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'policies.db'}"


def test_what_is_given_back_is_the_log_and_the_policy_in_force(tmp_path: Path) -> None:
    old, new = (PolicyStore(f"sqlite:///{tmp_path / name}") for name in ("old.db", "new.db"))
    for n in range(3):
        state = old.add(draft(f"{n}"), expected=n)
    new.restore(state)
    assert new.in_force() == old.in_force()
    # Numbers of lost policies are not given again.
    lost = tuple(replace(a, version=a.version + 10) for a in state.activations)
    third = PolicyStore(f"sqlite:///{tmp_path / 'third.db'}")
    third.restore(InForce(activations=lost, policy=draft().model_copy(update={"version": 13})))
    added = third.add(draft(), expected=3)
    assert added.policy is not None
    assert added.policy.version == 14


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/db", "oracle://host", "sqlite://", "sqlite:///:memory:"]
)
def test_impossible_urls(url: str) -> None:
    with pytest.raises(ConfigurationError, match="policy store"):
        PolicyStore(url)


def test_a_store_that_is_not_there_is_one_line_without_the_password(tmp_path: Path) -> None:
    for url in (
        f"sqlite:///{tmp_path / 'no' / 'folder' / 'p.db'}",
        "postgresql://ada:hunter2hunter2@127.0.0.1:1/policies",
    ):
        store = PolicyStore(url, timeout_s=0.5)
        with pytest.raises(StoreError) as caught:
            store.sequence()
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "p.db").write_bytes(b"not a database, but long enough to be looked at as one" * 50)
    with pytest.raises(StoreError, match="not a database"):
        PolicyStore(f"sqlite:///{tmp_path / 'p.db'}").sequence()
