"""R4: which answered requests the decision log holds after kills, and whether its files are torn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from benchmarks.chaos.verdicts import Verdict
from benchmarks.load.records import Records

GRACE_S = 1.0
"""``kill -9`` may cost what is younger."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the segments hold."""

    numbers: frozenset[int]
    """Of the load's requests."""
    rows: int
    files: int
    torn: tuple[str, ...]


def read_log(folder: Path) -> Logged:
    """All segments; files and folders whose names begin with an underscore or a dot are not part of a log."""
    numbers: set[int] = set()
    rows, files, torn = 0, 0, []
    for file in sorted(folder.rglob("*.parquet")):
        if any(part.startswith(("_", ".")) for part in file.relative_to(folder).parts):
            continue
        files += 1
        try:
            ids = parquet.read_table(file, columns=["request_id"])["request_id"].to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            torn.append(f"{file.name}: {error}")
            continue
        rows += len(ids)
        numbers |= {
            int(number)
            for number, dash, _ in (str(i).partition("-") for i in ids)
            if dash and number.isdecimal()
        }
    return Logged(numbers=frozenset(numbers), rows=rows, files=files, torn=tuple(torn))


def log_verdicts(
    records: Records, logged: Logged, *, killed_s: Sequence[float], excused: Sequence[tuple[float, float]]
) -> list[Verdict]:
    """R4: of the requests that were answered, which are missing. Pure.

    Args:
        records: of the load; every request was to be logged.
        logged: what was found.
        killed_s: when replicas were killed: what was answered in the second before may be lost.
        excused: stretches in which the disk was full: what was answered there is dropped, and counted.
    """
    ended = records["ended_s"]
    expected = records.ok.copy()
    young = np.zeros(len(records), dtype=bool)
    for begin_s, end_s in excused:
        expected &= ~((ended >= begin_s - GRACE_S) & (ended < end_s))
    for at_s in killed_s:
        young |= (ended >= at_s - GRACE_S) & (ended <= at_s + GRACE_S)
    there = np.isin(records["number"], np.fromiter(logged.numbers, dtype=np.int64, count=len(logged.numbers)))
    lost_old = int((expected & ~young & ~there).sum())
    lost_young = int((expected & young & ~there).sum())
    count = int((expected & ~young).sum())
    return [
        Verdict(
            target="R4 decisions older than 1 s lost by kill -9",
            hit=lost_old == 0 and count > 0,
            found=f"{lost_old} of {count:,}, and {lost_young} younger ones",
        ),
        Verdict(
            target="R4 torn files",
            hit=not logged.torn and logged.files > 0,
            found=f"{len(logged.torn)} of {logged.files}" + (f" ({logged.torn[0]})" if logged.torn else ""),
        ),
    ]
