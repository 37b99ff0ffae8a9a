"""Requests of an experiment → sums per user → what lifts and intervals are made of.

With ``w_i = 1 / log_probability_i`` of request i and outcome ``r_i``, the value of an arm is the ratio

    V = Σ_i w_i r_i / Σ_i w_i ,

and users, not requests, are the independent units. Arms are compared within times in which their shares did
not change (:class:`ray_train.stratified.StratifiedDelta`). Two shuffles: by request id for the events, then
by user id for the clusters; the driver sees sums over users only.

Requests that came with the control switched off, by the operator or by themselves (``control_off``), are no
part of any arm's value, as explored ones are not: the switch is set before an arm is drawn and serves the
production weights in all of them, so they are no fault and only dilute what is compared. Their weight is
kept, by arm.

Shape legend: U users of a part, P arms (number 0 is the control), S strata, R outcomes (objectives, then
metrics).
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_train import columns
from ray_train.attribution import Attributed, Attribution, DecisionFate, attribute
from ray_train.decisions import DECISION_COUNT, EVENT_COUNT, Reader, counted
from ray_train.duplicates import hash_strings
from ray_train.estimators import FloatArray
from ray_train.experiment_design import Design
from ray_train.experiment_strata import Strata
from ray_train.partitions import Bucket, joined, regrouped, tables
from ray_train.stratified import StratifiedDelta
from triton_models.surface import Surface

PAYLOAD = {
    "user_id": pa.string(),
    "cohort": pa.string(),
    "arm": pa.string(),
    "policy_version": pa.int64(),
    "reason": pa.string(),
    "log_probability": pa.float64(),
}
"""What a decision carries through the shuffle."""

CHUNK = 1 << 22
"""Sums of users that are spread out at once."""

EXPLORED = "explored"
WITHOUT_USER = "without_user"
BAD_PROBABILITY = "bad_log_probability"
ANALYSED = "analysed"
CONTROL_OFF = "control_off"
"""Of the counts, and of the decisions' reasons."""

Scope = tuple[int | None, str | None]
"""Policy version and cohort; None is all of them."""


@dataclass(kw_only=True)
class Moments:
    """Sums over the users of one scope, by arm."""

    delta: StratifiedDelta
    users_P: npt.NDArray[np.int64]
    requests_P: npt.NDArray[np.int64]
    weight_P: FloatArray
    square_P: FloatArray
    fallback_P: FloatArray
    """Weight of the requests that fell back."""
    off_P: FloatArray
    """Weight of the requests with the control switched off, which are in no other sum."""

    def merge(self, other: Moments) -> None:
        """Add other users."""
        self.delta.merge(other.delta)
        for name in ("users_P", "requests_P", "weight_P", "square_P", "fallback_P", "off_P"):
            getattr(self, name)[:] += getattr(other, name)


@dataclass(kw_only=True)
class ExperimentSums:
    """Everything that the requests have to say."""

    scopes: dict[Scope, Moments] = field(default_factory=dict)
    decisions: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    def merge(self, other: ExperimentSums) -> None:
        """Add other users, and other counts."""
        for scope, moments in other.scopes.items():
            if scope in self.scopes:
                self.scopes[scope].merge(moments)
            else:
                self.scopes[scope] = moments
        self.decisions.update(other.decisions)
        self.events.update(other.events)


def experiment_sums(
    reader: Reader,
    rules: Attribution,
    design: Design,
    *,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExperimentSums:
    """Attribute, add up per user, and add up over users, on the running Ray cluster.

    Raises:
        LogError: a file is damaged.
        SurfaceMismatchError: a decision was made under another surface.
    """
    per_user = PerUser(surface=reader.surface, rules=rules, parts=reader.buckets, strata=design.strata)
    requests = joined(reader, per_user)
    users = regrouped(requests, "part", reader.buckets).map_batches(
        PerScope(surface=reader.surface, design=design, confidence=confidence),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    parts: list[tuple[int, bytes]] = []
    for table in tables(users):
        parts += zip(table.column("part").to_pylist(), table.column("sums").to_pylist(), strict=True)
        progress(len(parts), reader.buckets)
    total = ExperimentSums()
    for _, data in sorted(parts):  # floating sums in one order, whoever was ready first
        total.merge(pickle.loads(data))  # our own tasks wrote it
    return total


# ------------------------------------------------------------------------------------------ by user


@dataclass(frozen=True, kw_only=True)
class PerUser:
    """One bucket of requests → sums per user, arm, version, cohort and stratum. Picklable."""

    surface: Surface
    rules: Attribution
    parts: int
    strata: Strata

    def __call__(self, bucket: Bucket) -> pa.Table:
        """The sums, and a row of counts."""
        found = attribute(self.surface, self.rules, bucket.decisions, bucket.events)
        sums, counts = user_sums(self.surface, found, self.strata)
        counts.update(counted(bucket.counts, DECISION_COUNT))
        events = found.event_counts + counted(bucket.counts, EVENT_COUNT)
        users = columns.strings(columns.column(sums, "user_id"))
        part = (hash_strings(users) % np.uint64(self.parts)).astype(np.int32)
        sums = sums.append_column("part", pa.array(part)).append_column(
            "counts", pa.nulls(sums.num_rows, pa.string())
        )
        text = json.dumps({"decisions": counts, "events": events})
        row = pa.table({"part": pa.array([0], pa.int32()), "counts": pa.array([text], pa.string())})
        return pa.concat_tables([sums, row], promote_options="default")


def user_sums(surface: Surface, found: Attributed, strata: Strata) -> tuple[pa.Table, Counter[str]]:
    """Sums per user, arm, version, cohort and stratum of requests that did not explore.

    Columns: the keys; ``requests``, ``weight``, ``square``, ``fallback``; ``n0..`` and ``d0..`` per outcome:
    ``Σ w r`` and ``Σ w`` over the requests whose outcome is known; ``off``, ``Σ w`` over the requests with
    the control switched off, which count nowhere else. Rewards are clipped to {0, 1} (Eq. 3), as in the
    frontier.
    """
    table = found.decisions
    probability = columns.floats(columns.column(table, "log_probability"), np.float64)
    explored = np.asarray(table.column("explored"), dtype=bool)
    has_user = np.asarray(pc.is_valid(table.column("user_id")))
    likely = (probability > 0) & (probability <= 1)
    good = ~explored & has_user & likely
    counts = Counter(found.decision_counts)
    del counts[DecisionFate.KEPT.value]
    counts[EXPLORED] = int(explored.sum())
    counts[WITHOUT_USER] = int((~explored & ~has_user).sum())
    counts[BAD_PROBABILITY] = int((~explored & has_user & ~likely).sum())
    reason = columns.strings(columns.column(table, "reason")).filter(pa.array(good))
    off = np.asarray(pc.fill_null(pc.equal(reason, CONTROL_OFF), False), dtype=bool)
    counts[CONTROL_OFF] = int(off.sum())
    counts[ANALYSED] = int(good.sum() - off.sum())
    asked = ~off
    w_off, w = off / probability[good], asked / probability[good]
    outcome = np.concatenate([found.rewards_nM > 0, found.metrics_nK], axis=1)[good]
    fell_back = np.asarray(pc.is_valid(reason))
    version = pc.fill_null(table.column("policy_version"), 0).filter(pa.array(good))
    t = columns.instants(columns.column(table, "timestamp"))[good]
    data = {
        "user_id": table.column("user_id").filter(pa.array(good)),
        "arm": pc.fill_null(table.column("arm"), "").filter(pa.array(good)),
        "version": version,
        "cohort": table.column("cohort").filter(pa.array(good)),
        "stratum": strata.numbers(version.to_numpy(), t),
        "requests": asked.astype(np.int64),
        "weight": w,
        "square": w**2,
        "fallback": w * fell_back,
        "off": w_off,
    }
    for r in range(outcome.shape[1]):
        known = ~np.isnan(outcome[:, r])
        data[f"n{r}"] = np.where(known, w * outcome[:, r], 0.0)
        data[f"d{r}"] = w * known
    keys = ["user_id", "arm", "version", "cohort", "stratum"]
    # Floating sums in the order of the requests, not of the threads.
    grouped = pa.TableGroupBy(pa.table(data), keys, use_threads=False)
    sums = grouped.aggregate([(name, "sum") for name in data if name not in keys])
    return sums.rename_columns([name.removesuffix("_sum") for name in sums.column_names]), counts


# ----------------------------------------------------------------------------------------- by scope


@dataclass(frozen=True, kw_only=True)
class PerScope:
    """All sums of some users → moments by scope. Picklable."""

    surface: Surface
    design: Design
    confidence: float

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """One row per part: its number, and :class:`ExperimentSums`, pickled."""
        for part in sorted(pc.unique(block.column("part")).to_pylist()):
            own = block.filter(pc.equal(block.column("part"), part))
            sums = ExperimentSums()
            for text in own.column("counts").drop_null().to_pylist():
                for name, counts in json.loads(text).items():
                    getattr(sums, name).update(counts)
            rows = (
                own.filter(pc.is_valid(own.column("user_id")))
                if "user_id" in own.column_names
                else own.slice(0, 0)
            )
            if rows.num_rows:
                # By everything, so that floating sums do not depend on which part came first.
                names = [name for name in rows.column_names if name not in ("part", "counts")]
                order = [(name, "ascending") for name in names]
                sums.scopes = scope_moments(self.surface, self.design, rows.sort_by(order), self.confidence)
            yield pa.table({"part": [part], "sums": pa.array([pickle.dumps(sums)], pa.large_binary())})


def scope_moments(
    surface: Surface, design: Design, rows: pa.Table, confidence: float
) -> dict[Scope, Moments]:
    """Moments of every scope that some user is in; all rows of each user must be there.

    For everybody and each cohort, over all versions and (if there are several) each of them.
    """
    arm = np.asarray(pc.index_in(rows.column("arm"), value_set=pa.array(design.arms, pa.string())))
    version, stratum = rows.column("version").to_numpy(), rows.column("stratum").to_numpy()
    cohort = columns.codes(columns.column(rows, "cohort"), design.cohorts)  # 0: none
    user = columns.column(rows, "user_id").dictionary_encode().indices.to_numpy()
    numbers = _numbers(rows, len(surface.objectives) + len(surface.metrics))
    versions: list[int | None] = [None, *design.versions] if len(design.versions) > 1 else [None]
    found: dict[Scope, Moments] = {}
    for v in versions:
        for c, name in enumerate((None, *design.cohorts)):
            inside = np.ones(len(arm), dtype=bool) if v is None else version == v
            if name is not None:
                inside = inside & (cohort == c)
            if (inside & (numbers["requests"] > 0)).any():
                part = {key: values[inside] for key, values in numbers.items()}
                own = design.strata.of(v)
                cells = _Cells(
                    arm=arm[inside],
                    user=user[inside],
                    stratum=stratum[inside] - own.start,
                    arms=len(design.arms),
                    strata=own.stop - own.start,
                )
                found[v, name] = _moments(cells, part, confidence)
    return found


def _numbers(rows: pa.Table, outcomes: int) -> dict[str, npt.NDArray[np.float64]]:
    names = ["requests", "weight", "square", "fallback", "off"]
    names += [f"{kind}{r}" for r in range(outcomes) for kind in "nd"]
    return {name: rows.column(name).to_numpy().astype(np.float64) for name in names}


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """Where each row of sums belongs."""

    arm: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    stratum: npt.NDArray[np.int64]
    arms: int
    strata: int

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Cells:
        """Some of the rows."""
        arm, user, stratum = self.arm[chosen], self.user[chosen], self.stratum[chosen]
        return _Cells(arm=arm, user=user, stratum=stratum, arms=self.arms, strata=self.strata)


def _moments(cells: _Cells, numbers: dict[str, npt.NDArray[np.float64]], confidence: float) -> Moments:
    arms = cells.arms
    off_P = np.asarray(np.bincount(cells.arm, weights=numbers["off"], minlength=arms), dtype=np.float64)
    asked = numbers["requests"] > 0  # who only ever came with the control off is nobody's user
    cells = cells.where(asked)
    numbers = {name: values[asked] for name, values in numbers.items()}
    users, code = np.unique(cells.user, return_inverse=True)
    seen = np.zeros((len(users), arms), dtype=bool)
    seen[code, cells.arm] = True

    def by_arm(name: str) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(cells.arm, weights=numbers[name], minlength=arms), dtype=np.float64)

    return Moments(
        delta=_delta(cells, code, numbers, confidence),
        users_P=seen.sum(axis=0),
        requests_P=by_arm("requests").astype(np.int64),
        weight_P=by_arm("weight"),
        square_P=by_arm("square"),
        fallback_P=by_arm("fallback"),
        off_P=off_P,
    )


def _delta(
    cells: _Cells,
    code: npt.NDArray[np.int64],
    numbers: dict[str, npt.NDArray[np.float64]],
    confidence: float,
) -> StratifiedDelta:
    """Sums [U, P, S, R, 2] of users number ``code``, some users at a time."""
    outcomes = (len(numbers) - 5) // 2
    shape = (cells.arms, cells.strata, outcomes, 2)
    users, step = int(code.max()) + 1, max(1, CHUNK // int(np.prod(shape)))
    order = np.argsort(code, kind="stable")
    delta = StratifiedDelta(confidence=confidence)
    for first in range(0, users, step):
        low, high = np.searchsorted(code[order], [first, first + step])
        rows = order[low:high]
        sum_UPSR2 = np.zeros((min(step, users - first), *shape))
        where = (code[rows] - first, cells.arm[rows], cells.stratum[rows])
        for r in range(outcomes):
            for k, kind in enumerate("nd"):
                np.add.at(sum_UPSR2[..., r, k], where, numbers[f"{kind}{r}"][rows])
        delta.add(sum_UPSR2)
    return delta
