"""Scored slices → compact arrays on the driver: duplicates out, sorted by user, users and cohorts as numbers.

Shape legend: N rows, R outcomes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_train.duplicates import later_occurrences
from ray_train.estimators import LoggedRows
from ray_train.rows import Reason
from ray_train.sweep import ScoredRows
from triton_models.errors import LogError
from triton_models.surface import Surface

logger = logging.getLogger(__name__)

_MATRICES = ("outcome", "chosen", "finer", "feature")


class Collector:
    """Gathers scored slices into compact arrays."""

    def __init__(self) -> None:
        self.rows = 0
        self._reasons = np.zeros(len(Reason), dtype=np.int64)
        self._users: dict[str, int] = {}
        self._cohorts: dict[str, int] = {}
        self._parts: dict[str, list[npt.NDArray[Any]]] = {}

    def add(self, table: pa.Table) -> None:
        """Take in one slice of :func:`ray_train.scoring.score_table`."""
        self.rows += table.num_rows
        reason = table.column("reason").to_numpy()
        self._reasons += np.bincount(reason, minlength=len(Reason))
        keep = reason == Reason.GOOD
        if not keep.all():
            table = table.filter(pa.array(keep))
        if not table.num_rows:
            return
        part = {name: table.column(name).to_numpy() for name in ("action", "propensity", "identity")}
        part |= {name: _matrix(table.column(name)) for name in _MATRICES if name in table.column_names}
        part["user"] = _numbers(table.column("user"), self._users).astype(np.int32)
        part["cohort"] = _numbers(table.column("cohort"), self._cohorts).astype(np.int16)
        for name, values in part.items():
            # A copy lets go of the Arrow block, which lies in Ray's shared memory.
            self._parts.setdefault(name, []).append(values.copy())

    def finish(self, surface: Surface, *, max_bad_share: float = 1.0) -> ScoredRows:
        """All rows without later duplicates, sorted by user id.

        Raises:
            LogError: there are none, or too many did not pass the checks.
        """
        data = {name: np.concatenate(self._parts.pop(name)) for name in list(self._parts)}
        later = later_occurrences(data.pop("identity", np.zeros(0, dtype=np.uint64)))
        self._reasons[Reason.GOOD] -= len(later)
        self._reasons[Reason.DUPLICATE_ID] += len(later)
        self._refuse_if_bad(max_bad_share)
        user_N = _ranks(self._users)[data.pop("user")].astype(np.int32)
        order = np.argsort(user_N, kind="stable")
        if len(later):
            order = order[~np.isin(order, later)]
        names, cohort_N = _order_cohorts(surface, self._cohorts, data.pop("cohort"))
        rows = LoggedRows(
            user_N=user_N[order],
            action_N=data["action"][order],
            propensity_N=data["propensity"][order],
            outcome_NR=data["outcome"][order],
            feature_NF=data["feature"][order] if "feature" in data else None,
        )
        return ScoredRows(
            rows=rows,
            chosen_NP=data["chosen"][order],
            finer_NP=data["finer"][order] if "finer" in data else None,
            cohort_N=cohort_N[order],
            cohorts=names,
            rejected=int(self._reasons[1:].sum()),
        )

    def _refuse_if_bad(self, max_bad_share: float) -> None:
        if self.rows == 0:
            raise LogError(
                "the log has no rows in the run's hold-out window; if it is a later log, use --split all"
            )
        bad = int(self._reasons[1:].sum())
        if bad == self.rows or bad / self.rows > max_bad_share:
            counts = zip(Reason, self._reasons, strict=True)
            named = ", ".join(f"{reason.label} {count}" for reason, count in counts if reason and count)
            raise LogError(
                f"{bad} of {self.rows} rows of the window are bad ({100 * bad / self.rows:.2f} %, at most "
                f"{100 * max_bad_share:g} % accepted): {named}; python -m ray_train validate shows them"
            )


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    width = column.type.list_size
    return np.concatenate([chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks])


def _numbers(column: pa.ChunkedArray, known: dict[str, int]) -> npt.NDArray[np.int64]:
    """A number per string, new ones counted on; null is -1."""
    encoded = column.combine_chunks().dictionary_encode()
    words = encoded.dictionary.to_pylist()
    table = np.array([known.setdefault(word, len(known)) for word in words] + [-1], dtype=np.int64)
    index = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    return np.asarray(table[index])


def _ranks(known: dict[str, int]) -> npt.NDArray[np.int64]:
    """Number in order of arrival → number in the order of the names."""
    ranks = np.empty(len(known), dtype=np.int64)
    ranks[[known[name] for name in sorted(known)]] = np.arange(len(known))
    return ranks


def _order_cohorts(
    surface: Surface, known: dict[str, int], cohort_N: npt.NDArray[np.int16]
) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
    """Cohorts in the surface's order (else sorted); rows of cohorts it does not name get -1."""
    names = tuple(name for name in (surface.cohorts or sorted(known)) if name in known)
    unknown = sorted(set(known) - set(names))
    if unknown:
        logger.warning(
            "cohorts %s are not the surface's: they count for all rows only", ", ".join(unknown[:5])
        )
    table = np.full(len(known) + 1, -1, dtype=np.int16)
    for number, name in enumerate(names):
        table[known[name]] = number
    return names, np.asarray(table[cohort_N])
