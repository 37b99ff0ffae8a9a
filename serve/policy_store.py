"""Policies and the log of their activations, in a database. SQLite by default; PostgreSQL for several nodes.

Policies are numbered and never change. What is in force is the last line of the activation log, which only
grows: a change appends a line, and so does a roll-back. The line's number is the primary key, so of two
simultaneous changes that were made for the same state of affairs exactly one is written::

    INSERT INTO puts_activations (sequence, …) VALUES (expected + 1, …)      -- compare-and-swap

Everything here blocks: call it from a thread, never from the event loop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from serve.policy import Activation, Policy
from serve.policy_database import (
    ACTIVATIONS,
    FRONTIERS,
    POLICIES,
    RAMP_WINDOWS,
    create_tables,
    engine_options,
    take_over_transactions,
    what_is_wrong,
)
from triton_models.errors import (
    ConfigurationError,
    FrontierError,
    PolicyConflictError,
    PolicyError,
    PolicyNotFoundError,
    StoreError,
)
from triton_models.frontier import Frontier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InForce:
    """The state of the store: the whole activation log, and the policy that is in force by it."""

    activations: tuple[Activation, ...]
    policy: Policy | None
    """None: version 0, the sidecar's own configuration."""

    @property
    def activation(self) -> Activation | None:
        """The last line of the log."""
        return self.activations[-1] if self.activations else None

    @property
    def sequence(self) -> int:
        """Its number; 0 for an empty log."""
        return self.activations[-1].sequence if self.activations else 0


def line_of(activations: Sequence[Activation]) -> list[int]:
    """The versions that a roll-back walks along, oldest first, the one in force last.

    Going back to a version forgets what came after it, so a second roll-back goes one further back and
    not forth again: 1, 2, 3, then back to 2, then 4 leaves 0, 1, 2, 4.
    """
    line = [0]
    for activation in activations:
        version = activation.version
        line = line[: line.index(version) + 1] if version in line else [*line, version]
    return line


def ramp_offset_s(activations: Sequence[Activation], version: int) -> float:
    """How far a version's ramp had come when it was last replaced; 0 if it never was in force."""
    for index in range(len(activations) - 2, -1, -1):
        if activations[index].version == version:
            held_s = activations[index + 1].at - activations[index].at
            return activations[index].ramp_offset_s + max(0.0, held_s)
    return 0.0


class PolicyStore:
    """One database. Safe to use from several threads and processes."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        try:
            parsed = sa.make_url(url)
            if parsed.drivername in ("postgresql", "postgres"):
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.name = parsed.render_as_string(hide_password=True)
            self._engine = sa.create_engine(parsed, **engine_options(parsed, timeout_s))
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
            # The message may repeat the URL, and the URL may hold a password.
            raise ConfigurationError(
                "policy store: expected a URL like sqlite:///policies.db or postgresql://user@host/database "
                f"({type(error).__name__})"
            ) from None
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ConfigurationError("policy store: a database in memory would not survive a restart")
            take_over_transactions(self._engine)
        self._made = False

    @contextmanager
    def transaction(self, *, change: bool = False) -> Iterator[sa.Connection]:
        """One transaction, its tables made; ``change`` for those that write.

        Raises:
            PolicyConflictError: somebody else wrote the same line first.
            StoreError: the store does not answer.
        """
        try:
            if not self._made:
                create_tables(self._engine)
                self._made = True
            with (
                self._engine.connect().execution_options(puts_change=change) as connection,
                connection.begin(),
            ):
                yield connection
        except IntegrityError as error:
            raise PolicyConflictError(
                "somebody else has changed the policy at the same moment; look at it and try again"
            ) from error
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"policy store {self.name}: {what_is_wrong(error)}") from error

    def _changing(self) -> AbstractContextManager[sa.Connection]:
        return self.transaction(change=True)

    # ------------------------------------------------------------------ reading

    def sequence(self) -> int:
        """Number of the last activation; what replicas poll.

        Raises:
            StoreError: the store does not answer.
        """
        with self.transaction() as connection:
            return connection.scalar(sa.select(sa.func.max(ACTIVATIONS.c.sequence))) or 0

    def in_force(self) -> InForce:
        """The activation log and the policy in force.

        Raises:
            StoreError: the store does not answer, or holds what cannot be read.
        """
        with self.transaction() as connection:
            activations = _activations(connection)
            version = activations[-1].version if activations else 0
            policy = _policy(connection, version) if version else None
        return InForce(activations=activations, policy=policy)

    def policy(self, version: int) -> Policy:
        """A policy by its number.

        Raises:
            PolicyNotFoundError: there is none.
            StoreError: the store does not answer.
        """
        with self.transaction() as connection:
            return _policy(connection, version)

    def policies(self) -> list[dict[str, Any]]:
        """All policies without their bodies, newest first.

        Raises:
            StoreError: the store does not answer.
        """
        columns = [column for column in POLICIES.c if column.name != "body"]
        with self.transaction() as connection:
            rows = connection.execute(sa.select(*columns).order_by(POLICIES.c.version.desc()))
            # SQLAlchemy's keys are a kind of string that orjson does not take for one.
            return [{str(name): value for name, value in row._mapping.items()} for row in rows]

    def frontier(self, fingerprint: str) -> Frontier | None:
        """A frontier that a policy came from.

        Raises:
            StoreError: the store does not answer, or the frontier cannot be read.
        """
        with self.transaction() as connection:
            body = connection.scalar(
                sa.select(FRONTIERS.c.body).where(FRONTIERS.c.fingerprint == fingerprint)
            )
        try:
            return None if body is None else Frontier.model_validate_json(body)
        except (ValidationError, FrontierError) as error:
            raise StoreError(f"policy store {self.name}: frontier {fingerprint} is damaged") from error

    # ------------------------------------------------------------------ changing

    def add(self, policy: Policy, *, expected: int, frontier: Frontier | None = None) -> InForce:
        """Write a policy under the next number and put it in force; all of it or nothing.

        Args:
            policy: Its ``version`` is ignored; ``created_at`` is the time of the activation.
            expected: Sequence of the activation that the change was made for.

        Raises:
            PolicyConflictError: another change came first.
            StoreError: the store does not answer.
        """
        with self._changing() as connection:
            before = _expect(connection, expected)
            # The log may know of numbers whose policies were lost; none is ever given twice.
            numbers = [connection.scalar(sa.select(sa.func.max(POLICIES.c.version))) or 0]
            newest = max(numbers + [activation.version for activation in before])
            policy = policy.model_copy(update={"version": newest + 1})
            if frontier is not None:
                _keep_frontier(connection, frontier)
            connection.execute(POLICIES.insert().values(**_policy_row(policy)))
            activation = Activation(
                sequence=expected + 1,
                version=policy.version,
                at=policy.created_at,
                author=policy.author,
                reason=policy.reason,
            )
            connection.execute(ACTIVATIONS.insert().values(**activation.__dict__))
        return InForce(activations=(*before, activation), policy=policy)

    def go_back(
        self,
        *,
        expected: int,
        author: str,
        reason: str,
        at: float,
        surface_fingerprint: str,
        version: int | None = None,
    ) -> InForce:
        """Put an earlier policy in force again: the one before, or a given one.

        Raises:
            PolicyError: it is for another surface.
            PolicyConflictError: another change came first.
            PolicyNotFoundError: there is nothing before, or no such version.
            StoreError: the store does not answer.
        """
        with self._changing() as connection:
            before = _expect(connection, expected)
            line = line_of(before)
            if version is None:
                if len(line) < 2:
                    raise PolicyNotFoundError("there is no earlier policy to go back to")
                version = line[-2]
            elif version == line[-1]:
                raise PolicyNotFoundError(f"policy {version} is in force already")
            policy = _policy(connection, version) if version else None
            if policy is not None and policy.surface_fingerprint != surface_fingerprint:
                raise PolicyError(f"policy {version} is for another control surface")
            activation = Activation(
                sequence=expected + 1,
                version=version,
                at=at,
                author=author,
                reason=reason,
                ramp_offset_s=ramp_offset_s(before, version),
            )
            connection.execute(ACTIVATIONS.insert().values(**activation.__dict__))
        return InForce(activations=(*before, activation), policy=policy)

    def exchange_windows(
        self, *, replica: str, sequence: int, at: float, body: str, forget_before: float
    ) -> list[str]:
        """Say what a replica has counted under an activation, and hear what the others have.

        Args:
            replica: Whose count it is; its last one is replaced.
            sequence: The activation.
            at: Now, Unix time in seconds.
            body: The count, for other replicas to read.
            forget_before: Replicas that said nothing since then are gone.

        Raises:
            StoreError: the store does not answer.
        """
        w = RAMP_WINDOWS.c
        with self._changing() as connection:
            connection.execute(RAMP_WINDOWS.delete().where((w.replica == replica) | (w.at < forget_before)))
            connection.execute(
                RAMP_WINDOWS.insert().values(replica=replica, sequence=sequence, at=at, body=body)
            )
            others = sa.select(w.body).where((w.sequence == sequence) & (w.replica != replica))
            return [str(text) for text in connection.scalars(others)]

    def restore(self, state: InForce) -> None:
        """Give an empty store back what a replica knows: the activation log and the policy in force.

        Raises:
            PolicyConflictError: it is not empty any more.
            StoreError: the store does not answer.
        """
        with self._changing() as connection:
            _expect(connection, 0)
            if state.policy is not None:
                connection.execute(POLICIES.insert().values(**_policy_row(state.policy)))
            for activation in state.activations:
                connection.execute(ACTIVATIONS.insert().values(**activation.__dict__))

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


# ---------------------------------------------------------------------- rows


def _activations(connection: sa.Connection) -> tuple[Activation, ...]:
    rows = connection.execute(sa.select(ACTIVATIONS).order_by(ACTIVATIONS.c.sequence))
    return tuple(Activation(**row._mapping) for row in rows)


def _expect(connection: sa.Connection, expected: int) -> tuple[Activation, ...]:
    activations = _activations(connection)
    sequence = activations[-1].sequence if activations else 0
    if sequence != expected:
        last = activations[-1] if activations else None
        who = f"; the last change, to policy {last.version}, is by {last.author}" if last else ""
        raise PolicyConflictError(
            f"the policy has changed meanwhile: expected activation {expected}, it is {sequence}{who}; "
            "look at it and try again"
        )
    return activations


def _policy(connection: sa.Connection, version: int) -> Policy:
    body = connection.scalar(sa.select(POLICIES.c.body).where(POLICIES.c.version == version))
    if body is None:
        raise PolicyNotFoundError(f"there is no policy {version}")
    try:
        return Policy.model_validate_json(body)
    except ValidationError as error:
        raise StoreError(f"policy {version} in the store cannot be read; was it edited?") from error


def _policy_row(policy: Policy) -> dict[str, Any]:
    names = ("version", "surface_fingerprint", "frontier_fingerprint", "author", "reason", "created_at")
    return {name: getattr(policy, name) for name in names} | {"body": policy.model_dump_json()}


def _keep_frontier(connection: sa.Connection, frontier: Frontier) -> None:
    known = sa.select(FRONTIERS.c.fingerprint).where(FRONTIERS.c.fingerprint == frontier.fingerprint)
    if connection.scalar(known) is None:
        body = json.dumps(frontier.to_dict(), allow_nan=False)
        connection.execute(FRONTIERS.insert().values(fingerprint=frontier.fingerprint, body=body))
