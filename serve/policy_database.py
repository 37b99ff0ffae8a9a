"""Tables of the policy store, and how SQLite and PostgreSQL are opened so that both behave alike."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError

from triton_models.errors import first_line

TABLES = sa.MetaData()

POLICIES = sa.Table(
    "puts_policies",
    TABLES,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("surface_fingerprint", sa.String(64), nullable=False),
    sa.Column("frontier_fingerprint", sa.String(64)),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
ACTIVATIONS = sa.Table(
    "puts_activations",
    TABLES,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("ramp_offset_s", sa.Double, nullable=False),
)
RAMP_WINDOWS = sa.Table(
    "puts_ramp_windows",
    TABLES,
    sa.Column("replica", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
"""What each replica has lately counted of the ramped arm (:mod:`serve.guardrails`); no history."""
FRONTIERS = sa.Table(
    "puts_frontiers",
    TABLES,
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)


def engine_options(url: sa.URL, timeout_s: float) -> dict[str, Any]:
    """Options of SQLAlchemy's engine: nothing waits longer than ``timeout_s``.

    Raises:
        sqlalchemy.exc.ArgumentError: neither SQLite nor PostgreSQL.
    """
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": timeout_s}}
    if url.get_backend_name() != "postgresql":
        raise ArgumentError("SQLite and PostgreSQL are supported")
    milliseconds = round(timeout_s * 1000)
    return {
        "pool_size": 2,
        "pool_timeout": timeout_s,
        "pool_pre_ping": True,
        "connect_args": {
            "connect_timeout": max(2, round(timeout_s)),
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
            # A server that vanished without a word must not hold the poll for the kernel's two hours.
            "tcp_user_timeout": milliseconds,
        },
    }


def take_over_transactions(engine: sa.Engine) -> None:
    """Make SQLite's transactions real ones: by itself the driver begins them late, after the first read."""

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A reader that turns into a writer would be refused at once if another one was faster.
        change = connection.get_execution_options().get("puts_change")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if change else "BEGIN")


def create_tables(engine: sa.Engine) -> None:
    """Make the tables that are missing."""
    try:
        TABLES.create_all(engine)
    except (IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError):
        # Another replica made them between our look and our CREATE; or it is a real error, and shows again.
        TABLES.create_all(engine)


def what_is_wrong(error: BaseException) -> str:
    """Without the statement and the link that SQLAlchemy appends."""
    return first_line(getattr(error, "orig", None) or error)
