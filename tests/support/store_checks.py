"""What a policy store has to do, whatever database it is: run on SQLite by the unit tests, on a real
PostgreSQL by the integration tests. Subclasses give the fixture ``url``, a fresh database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from serve.policy import Policy
from serve.policy_store import InForce, PolicyStore, line_of
from tests.support.frontiers import frontier_data
from tests.support.surfaces import small_surface
from triton_models.errors import PolicyConflictError, PolicyError, PolicyNotFoundError
from triton_models.frontier import parse_frontier

SURFACE = small_surface()


def draft(reason: str = "because", at: float = 100.0, **changes: Any) -> Policy:
    data = {
        "version": 0,
        "author": "ada",
        "reason": reason,
        "created_at": at,
        "surface_fingerprint": SURFACE.fingerprint,
        "arms": [{"name": "all", "choice": [0.8, 0.2], "cohorts": {"core": "static"}}],
        **changes,
    }
    return Policy.model_validate(data)


def back(store: PolicyStore, expected: int, version: int | None = None, at: float = 200.0) -> InForce:
    return store.go_back(
        expected=expected,
        author="bob",
        reason="no",
        at=at,
        version=version,
        surface_fingerprint=SURFACE.fingerprint,
    )


def both_at_once(changes: list[Callable[[], Any]]) -> list[Any]:
    """What became of each change: its result or its error."""
    barrier, results = threading.Barrier(len(changes)), [None] * len(changes)

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = changes[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(changes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def exchanged(store: PolicyStore, replica: str, at: float, sequence: int = 3) -> list[str]:
    return store.exchange_windows(
        replica=replica, sequence=sequence, at=at, body=f"{replica} at {at:g}", forget_before=at - 100
    )


class StoreChecks:
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Iterator[PolicyStore]:
        store = PolicyStore(url, timeout_s=5.0)
        yield store
        store.close()

    def test_replicas_hear_of_each_other_s_last_word_on_the_same_activation(self, store: PolicyStore) -> None:
        assert exchanged(store, "a", 1.0) == []
        assert exchanged(store, "b", 2.0) == ["a at 1"]
        assert exchanged(store, "a", 3.0) == ["b at 2"]
        assert exchanged(store, "late", 4.0, sequence=2) == []
        assert sorted(exchanged(store, "b", 5.0)) == ["a at 3"]
        assert exchanged(store, "a", 104.0) == ["b at 5"]  # not forgotten yet
        assert exchanged(store, "a", 106.0) == []

    def test_many_exchange_at_once(self, url: str, store: PolicyStore) -> None:
        exchanged(store, "gone", -200.0)  # the tables are there
        stores = [PolicyStore(url, timeout_s=60.0) for _ in range(4)]
        turns: list[Callable[[], Any]] = [
            partial(lambda s, n: [exchanged(s, f"r{n}", 10.0 + t) for t in range(5)], s, n)
            for n, s in enumerate(stores)
        ]
        try:
            assert [len(turn) for turn in both_at_once(turns)] == [5] * 4
        finally:
            for other in stores:
                other.close()
        assert sorted(exchanged(store, "r0", 20.0)) == [f"r{n} at 14" for n in (1, 2, 3)]

    def test_empty(self, store: PolicyStore) -> None:
        assert store.sequence() == 0
        assert store.in_force() == InForce(activations=(), policy=None)
        assert store.policies() == []
        with pytest.raises(PolicyNotFoundError, match="1"):
            store.policy(1)
        with pytest.raises(PolicyNotFoundError, match="earlier"):
            back(store, 0)

    def test_policies_are_numbered_and_read_back_the_same(self, store: PolicyStore, url: str) -> None:
        first = store.add(draft("ünïcode ✓", exploration={"share": 0.01}), expected=0)
        second = store.add(draft("two", at=101.0), expected=1)
        assert first.policy is not None
        assert second.policy is not None
        assert [p.version for p in (first.policy, second.policy)] == [1, 2]
        other = PolicyStore(url)
        assert other.in_force() == second
        assert other.policy(1) == first.policy
        assert [row["reason"] for row in other.policies()] == ["two", "ünïcode ✓"]
        assert other.sequence() == 2
        other.close()

    def test_going_back(self, store: PolicyStore) -> None:
        for n in range(3):
            store.add(draft(f"{n}", at=100.0 + n), expected=n)
        assert back(store, 3).policy == store.policy(2)
        assert back(store, 4).policy == store.policy(1)
        assert back(store, 5).policy is None
        with pytest.raises(PolicyNotFoundError, match="earlier"):
            back(store, 6)
        assert back(store, 6, version=3).policy == store.policy(3)
        with pytest.raises(PolicyNotFoundError, match="in force already"):
            back(store, 7, version=3)
        with pytest.raises(PolicyNotFoundError, match="no policy 9"):
            back(store, 7, version=9)
        added = store.add(draft(), expected=7)
        assert added.policy is not None
        assert added.policy.version == 4
        assert line_of(store.in_force().activations) == [0, 3, 4]

    def test_a_ramp_goes_on_where_it_was(self, store: PolicyStore) -> None:
        store.add(draft(at=100.0), expected=0)
        store.add(draft(at=150.0), expected=1)
        assert back(store, 2, at=200.0).activations[-1].ramp_offset_s == 50.0
        store.add(draft(at=230.0), expected=3)
        assert back(store, 4, at=300.0).activations[-1].ramp_offset_s == 80.0

    def test_another_surface(self, store: PolicyStore) -> None:
        store.add(draft(surface_fingerprint="other"), expected=0)
        store.add(draft(), expected=1)
        with pytest.raises(PolicyError, match="another control surface"):
            back(store, 2)
        assert store.sequence() == 2

    def test_of_two_simultaneous_changes_one_wins_and_the_other_is_told(self, url: str) -> None:
        for turn in range(5):
            stores = [PolicyStore(url, timeout_s=5.0) for _ in range(3)]
            expected = stores[0].sequence()
            results = both_at_once(
                [partial(store.add, draft(f"{turn}"), expected=expected) for store in stores]
            )
            assert sum(isinstance(result, InForce) for result in results) == 1, results
            losers = [result for result in results if not isinstance(result, InForce)]
            assert all(isinstance(error, PolicyConflictError) for error in losers), losers
            assert all("try again" in str(error) and "\n" not in str(error) for error in losers)
            assert stores[0].sequence() == expected + 1
            assert len(stores[0].policies()) == turn + 1
            for store in stores:
                store.close()

    def test_a_change_made_for_an_older_state(self, store: PolicyStore) -> None:
        store.add(draft(), expected=0)
        with pytest.raises(PolicyConflictError, match=r"expected activation 0, it is 1.*ada"):
            store.add(draft(), expected=0)
        with pytest.raises(PolicyConflictError, match="expected activation 2"):
            back(store, 2)
        assert store.sequence() == 1

    def test_frontiers_are_kept(self, store: PolicyStore) -> None:
        frontier = parse_frontier(frontier_data(SURFACE), source="test")
        for n in range(2):
            store.add(draft(), expected=n, frontier=frontier)
        assert store.frontier(frontier.fingerprint) == frontier
        assert store.frontier("nothing") is None

    def test_only_an_empty_store_is_given_its_history_back(self, store: PolicyStore) -> None:
        state = store.add(draft(), expected=0)
        with pytest.raises(PolicyConflictError):
            store.restore(state)
