"""What an experiment looks like from its decisions: arms, policy versions, cohorts, and the λ each arm used.

And when the arms had which shares (:mod:`ray_train.experiment_strata`). One pass over a few narrow columns,
in threads. Explored requests are no part of an experiment.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_train import columns
from ray_train.attribution import Attribution
from ray_train.decisions import Source
from ray_train.experiment_strata import Strata, bins, find_strata
from ray_train.logs import DAMAGE, as_datetime, unreadable
from ray_train.reading import Unit, Window, read_slices
from triton_models.errors import ConfigurationError, LogError
from triton_models.surface import Surface

STATIC_SOURCE = "static"
NETWORK_SOURCE = "value_network"

COLUMNS = (
    *("timestamp", "arm", "policy_version", "cohort", "source", "explored", "scalarization"),
    "frontier_fingerprint",
)

DECIMALS = 9
"""Scalarizations that agree to so many decimals are one."""

Scalarization = tuple[float, ...]
Key = tuple[str, int, str | None]
"""Arm, policy version, cohort."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The arms of an experiment, the control first. Picklable."""

    arms: tuple[str, ...]
    versions: tuple[int, ...]
    cohorts: tuple[str, ...]
    choices: Mapping[Key, frozenset[Scalarization]]
    """λ that value-network answers used, by arm, version and cohort."""
    window: Window
    """First and last decision, both inclusive."""
    latest_version: int
    """Policy version of the last decision."""
    frontiers: frozenset[str]
    """Fingerprints of the frontiers that the policies came from."""
    explored: int
    """Closed decisions that explored, which are left out."""
    strata: Strata = field(default_factory=Strata)
    """Times in which the arms' shares did not change."""

    @property
    def control(self) -> str:
        """The arm that lifts are against."""
        return self.arms[0]

    def arms_of(self, version: int | None) -> tuple[str, ...]:
        """The arms that a version (None: any) has, in order."""
        found = {arm for arm, own, _ in self.choices if version is None or own == version}
        return tuple(arm for arm in self.arms if arm in found)

    def scalarization(self, arm: str, version: int | None, cohort: str | None) -> Scalarization | None:
        """The λ of an arm in some part of the traffic, if it had exactly one there."""
        used = {
            choice
            for (own_arm, own_version, own_cohort), choices in self.choices.items()
            if own_arm == arm and version in (None, own_version) and (cohort is None or cohort == own_cohort)
            for choice in choices
        }
        return used.pop() if len(used) == 1 else None


def read_design(surface: Surface, source: Source, rules: Attribution, control: str | None) -> Design:
    """Look through the closed decisions.

    Args:
        surface: of the decisions.
        source: the decision log.
        rules: which decisions are closed.
        control: name of the control arm; None finds the one arm that was always static.

    Raises:
        LogError: no decision is closed.
        ConfigurationError: there is no such arm, no telling which is the control, or nothing to compare.
    """
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 8))) as pool:
        found = list(pool.map(lambda unit: _of_unit(surface, source, unit, rules), source.units))
    merged = _Seen.together(found)
    if not merged.sources:
        raise LogError(
            f"{source.files.source}: no decision without exploration is closed as of "
            f"{rules.as_of.isoformat()}; give --as-of, or a shorter --attribution-window"
        )
    arms = sorted({arm for arm, _, _, _ in merged.sources})
    chosen = _control(arms, merged, control)
    if len(arms) < 2:
        raise ConfigurationError(f"{source.files.source}: only arm {arms[0]!r} is there; nothing to compare")
    ordered = (chosen, *(arm for arm in arms if arm != chosen))
    return Design(
        arms=ordered,
        versions=tuple(sorted({version for _, version, _, _ in merged.sources})),
        cohorts=_ordered({cohort for _, _, cohort, _ in merged.sources if cohort is not None}, surface),
        choices={
            (arm, version, cohort): frozenset(merged.choices.get((arm, version, cohort), ()))
            for arm, version, cohort, _ in merged.sources
        },
        window=(as_datetime(merged.first), as_datetime(merged.last)),
        latest_version=merged.latest,
        frontiers=frozenset(merged.frontiers),
        explored=merged.explored,
        strata=find_strata(ordered, merged.bins),
    )


def _ordered(cohorts: set[str], surface: Surface) -> tuple[str, ...]:
    """The surface's cohorts in its order, then those it does not know."""
    return (*(c for c in surface.cohorts if c in cohorts), *sorted(cohorts - set(surface.cohorts)))


def _control(arms: list[str], seen: _Seen, control: str | None) -> str:
    if control is not None:
        if control not in arms:
            raise ConfigurationError(
                f"--control {control}: there is no such arm; there are {', '.join(arms)}"
            )
        return control
    sources = {arm: {source for own, _, _, source in seen.sources if own == arm} for arm in arms}
    static = [arm for arm in arms if STATIC_SOURCE in sources[arm] and NETWORK_SOURCE not in sources[arm]]
    if len(static) != 1:
        raise ConfigurationError(
            f"which arm is the control? {', '.join(static) or 'none'} of {', '.join(arms)} was always "
            "static; give --control NAME"
        )
    return static[0]


class _Seen:
    """What one unit, or all of them, hold."""

    def __init__(self) -> None:
        self.sources: Counter[tuple[str, int, str | None, str]] = Counter()
        self.bins: Counter[tuple[str, int, int]] = Counter()
        self.choices: dict[Key, set[Scalarization]] = {}
        self.frontiers: set[str] = set()
        self.explored = 0
        self.first, self.last = np.datetime64("9999-01-01", "us"), np.datetime64("0001-01-01", "us")
        self.latest = 0

    @classmethod
    def together(cls, parts: Iterable[_Seen]) -> _Seen:
        """Everything that was seen."""
        whole = cls()
        for part in parts:
            whole.sources.update(part.sources)
            whole.bins.update(part.bins)
            for key, choices in part.choices.items():
                whole.choices.setdefault(key, set()).update(choices)
            whole.frontiers |= part.frontiers
            whole.explored += part.explored
            whole.latest = part.latest if part.last > whole.last else whole.latest
            whole.first, whole.last = min(whole.first, part.first), max(whole.last, part.last)
        return whole


def _of_unit(surface: Surface, source: Source, unit: Unit, rules: Attribution) -> _Seen:
    try:
        return _seen_in(surface, source, unit, rules)
    except DAMAGE as error:
        raise unreadable(unit.path, error) from error


def _seen_in(surface: Surface, source: Source, unit: Unit, rules: Attribution) -> _Seen:
    seen = _Seen()
    for _, table in read_slices(source.files, unit, COLUMNS):
        t = columns.instants(columns.column(table, "timestamp"))
        closed = rules.closed(t) & (t >= columns.EARLIEST)
        explored = np.asarray(columns.booleans(columns.column(table, "explored")))
        seen.explored += int((closed & explored).sum())
        table, t = table.filter(pa.array(closed & ~explored)), t[closed & ~explored]
        if not table.num_rows:
            continue
        keys = _keys(table)
        if t.max() > seen.last:
            seen.latest = keys.column("version")[int(t.argmax())].as_py()
        seen.first, seen.last = min(seen.first, t.min()), max(seen.last, t.max())
        for row in (
            keys.group_by(["arm", "version", "cohort", "source"]).aggregate([([], "count_all")]).to_pylist()
        ):
            seen.sources[row["arm"], row["version"], row["cohort"], row["source"]] += row["count_all"]
        binned = keys.select(["arm", "version"]).append_column("bin", pa.array(bins(t)))
        for row in binned.group_by(binned.column_names).aggregate([([], "count_all")]).to_pylist():
            seen.bins[row["arm"], row["version"], row["bin"]] += row["count_all"]
        found = pc.unique(table.column("frontier_fingerprint")).to_pylist()
        seen.frontiers |= {text for text in found if text is not None}
        _collect_choices(surface, table, keys, seen)
    return seen


def _keys(table: pa.Table) -> pa.Table:
    def text(name: str) -> pa.Array:
        return columns.strings(columns.column(table, name)).cast(pa.string())

    return pa.table(
        {
            "arm": pc.fill_null(text("arm"), ""),
            "version": pc.fill_null(columns.column(table, "policy_version").cast(pa.int64()), 0),
            "cohort": text("cohort"),
            "source": pc.fill_null(text("source"), ""),
        }
    )


def _collect_choices(surface: Surface, table: pa.Table, keys: pa.Table, seen: _Seen) -> None:
    size = len(surface.objectives)
    column = columns.column(table, "scalarization")
    has = columns.list_lengths(column) == size
    has &= np.asarray(pc.equal(keys.column("source"), NETWORK_SOURCE))
    if not has.any():
        return
    chosen = pa.array(has)
    flat = columns.floats(columns.flattened(column.filter(chosen)), np.float64).reshape(-1, size)
    data = keys.filter(chosen).select(["arm", "version", "cohort"])
    for m in range(size):
        data = data.append_column(f"l{m}", pa.array(np.round(flat[:, m], DECIMALS)))
    for row in data.group_by(data.column_names).aggregate([]).to_pylist():
        key = (row["arm"], row["version"], row["cohort"])
        seen.choices.setdefault(key, set()).add(tuple(row[f"l{m}"] for m in range(size)))
