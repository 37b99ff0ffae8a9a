"""Where references are kept: with the policies, so that all replicas have the same one, after a restart too.

A reference begins as a line without a body: "collect one, for this frontier". Every replica that sees it
collects; the first to be done writes the body, and the others take it over::

    UPDATE puts_drift_references SET body = … WHERE number = … AND body IS NULL      -- one of them does it

References belong to a frontier. Going back to an older policy goes back to its reference, and so tells that
the ranker is another one by now. A policy without a frontier (static, forced) keeps the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import sqlalchemy as sa
from pydantic import ValidationError

from serve.drift import Reference
from serve.policy_database import TABLES
from serve.policy_store import PolicyStore
from triton_models.errors import StoreError

REFERENCES = sa.Table(
    "puts_drift_references",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("surface_fingerprint", sa.String(64), nullable=False),
    sa.Column("frontier_fingerprint", sa.String(64)),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("body", sa.Text),
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A line of the store."""

    number: int
    frontier_fingerprint: str | None
    author: str
    made_at: float
    """Unix time in seconds at which collecting began."""
    reference: Reference | None
    """None: still collected."""


class References(Protocol):
    """Somewhere to keep references of one surface. Calls block."""

    kept: bool
    """Whether a restart finds them again."""

    def newest(self, frontier: str | None) -> Kept | None:
        """The newest of a frontier; None: of any."""

    def begin(self, frontier: str | None, *, author: str, at: float) -> Kept:
        """Start another one."""

    def finish(self, number: int, reference: Reference) -> None:
        """Write what was collected, unless somebody else has."""


class MemoryReferences:
    """Of a sidecar without a policy store: gone with the process."""

    kept = False

    def __init__(self) -> None:
        self._lines: list[Kept] = []

    def newest(self, frontier: str | None) -> Kept | None:
        """See :class:`References`."""
        lines = reversed(self._lines)
        return next((k for k in lines if frontier in (None, k.frontier_fingerprint)), None)

    def begin(self, frontier: str | None, *, author: str, at: float) -> Kept:
        """See :class:`References`."""
        self._lines = self._lines[-15:]
        number = self._lines[-1].number + 1 if self._lines else 1
        kept = Kept(number=number, frontier_fingerprint=frontier, author=author, made_at=at, reference=None)
        self._lines.append(kept)
        return kept

    def finish(self, number: int, reference: Reference) -> None:
        """See :class:`References`."""
        self._lines = [replace(k, reference=reference) if k.number == number else k for k in self._lines]


class StoredReferences:
    """In the database of the policies."""

    kept = True

    def __init__(self, store: PolicyStore, surface_fingerprint: str) -> None:
        self._store = store
        self._surface = surface_fingerprint

    def newest(self, frontier: str | None) -> Kept | None:
        """See :class:`References`.

        Raises:
            StoreError: the store does not answer, or the reference cannot be read.
        """
        wanted = REFERENCES.c.surface_fingerprint == self._surface
        if frontier is not None:
            wanted &= REFERENCES.c.frontier_fingerprint == frontier
        query = sa.select(REFERENCES).where(wanted).order_by(REFERENCES.c.number.desc()).limit(1)
        with self._store.transaction() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        try:
            reference = None if row.body is None else Reference.model_validate_json(row.body)
        except ValidationError as error:
            raise StoreError(f"drift reference {row.number} in the store cannot be read") from error
        return Kept(
            number=row.number,
            frontier_fingerprint=row.frontier_fingerprint,
            author=row.author,
            made_at=row.made_at,
            reference=reference,
        )

    def begin(self, frontier: str | None, *, author: str, at: float) -> Kept:
        """See :class:`References`.

        Raises:
            PolicyConflictError: another replica did so at the same moment.
            StoreError: the store does not answer.
        """
        with self._store.transaction(change=True) as connection:
            number = (connection.scalar(sa.select(sa.func.max(REFERENCES.c.number))) or 0) + 1
            line = {"number": number, "frontier_fingerprint": frontier, "author": author, "made_at": at}
            connection.execute(REFERENCES.insert().values(surface_fingerprint=self._surface, **line))
        return Kept(number=number, frontier_fingerprint=frontier, author=author, made_at=at, reference=None)

    def finish(self, number: int, reference: Reference) -> None:
        """See :class:`References`.

        Raises:
            StoreError: the store does not answer.
        """
        mine = (REFERENCES.c.number == number) & REFERENCES.c.body.is_(None)
        with self._store.transaction(change=True) as connection:
            connection.execute(REFERENCES.update().where(mine).values(body=reference.model_dump_json()))
