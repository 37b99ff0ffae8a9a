"""Conducts the faults: one load over all of a stage, one fault after the other, times on one clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.episodes import Episode, Outcome, Window, fault_free, judge
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.settings import ChaosSettings
from benchmarks.chaos.verdicts import Verdict, verdicts
from benchmarks.latency.blocks import Saturation
from benchmarks.latency.measure import saturation_of
from benchmarks.load.driver import LoadRun, run_load
from benchmarks.load.plan import Phase, Plan
from benchmarks.load.records import Records
from benchmarks.materials import Materials
from triton_models.errors import BenchmarkError, PutsError

Say = Callable[[str], None]

LONGEST_MENDING_S = 60.0
"""A fault's end may take so long; only bounds the load's plan."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One load and its faults."""

    name: str
    title: str
    rate_per_s: float
    saturation: Mapping[int, float]
    records: Records
    episodes: tuple[Episode, ...]
    outcomes: tuple[Outcome, ...]
    calm: Window
    """All fault-free windows together."""
    verdicts: tuple[Verdict, ...]
    broken: Mapping[str, str] = field(default_factory=dict)
    """Faults that could not be put in or mended, and why."""
    notes: tuple[str, ...] = ()
    """What the stage found out beside it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything of one run."""

    settings: ChaosSettings
    network: str
    machine: Mapping[str, Any]
    stages: tuple[StageResult, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    """Stages that could not be run, and why."""


@dataclass
class Conductor:
    """Puts faults in beside a load on one address."""

    settings: ChaosSettings
    materials: Materials
    folder: Path
    say: Say
    retries: int = 0
    unique: bool = False
    """Every request has an id of its own."""

    def run(
        self, name: str, title: str, address: str, faults: Sequence[Callable[[], list[Fault]]]
    ) -> StageResult:
        """A stage: groups of faults under one load. A group is made when its turn comes.

        Raises:
            BenchmarkError: the load does not run, or nothing is answered without faults.
        """
        rate, saturation = self._rate(name, address)
        episodes: list[Episode] = []
        broken: dict[str, str] = {}
        with self._load(name, address, rate) as load:
            began_s = load.wait_until_begun()
            _sleep_until(began_s + self.settings.warm_up_s)
            for group in faults:
                for fault in group():
                    if self.settings.only and fault.name not in self.settings.only:
                        continue
                    for _ in range(self.settings.repeats):
                        self._episode(fault, episodes, broken)
            load.stop()
            records = load.records()
        return self._result(name, title, rate, saturation, records, episodes, broken)

    def _result(
        self,
        name: str,
        title: str,
        rate: float,
        saturation: Saturation | None,
        records: Records,
        episodes: list[Episode],
        broken: dict[str, str],
    ) -> StageResult:
        names = dict.fromkeys(episode.name for episode in episodes)
        outcomes = tuple(judge(records, *(e for e in episodes if e.name == name)) for name in names)
        calm = fault_free(records, episodes)
        if calm.p99_ms is None and episodes:
            raise BenchmarkError(f"{name}: nothing was answered without faults: {records.counts('problem')}")
        found = [verdict for outcome in outcomes for verdict in verdicts(outcome, calm)]
        return StageResult(
            name=name,
            title=title,
            rate_per_s=rate,
            saturation=dict(saturation.rates) if saturation else {},
            records=records,
            episodes=tuple(episodes),
            outcomes=outcomes,
            calm=calm,
            verdicts=tuple(found),
            broken=broken,
        )

    def _episode(self, fault: Fault, episodes: list[Episode], broken: dict[str, str]) -> None:
        s, control_s = self.settings, time.monotonic()
        _sleep_until(control_s + s.control_s)
        self.say(f"  {fault.title}")
        began_s = time.monotonic()
        try:
            fault.begin()
            if not fault.supervised:
                _sleep_until(began_s + (fault.seconds if fault.seconds is not None else s.fault_s))
            fault.end()
        except (PutsError, OSError) as error:
            broken[fault.name] = str(error)
            self.say(f"  {fault.title}: {error}")
            with suppress(PutsError, OSError):
                fault.end()  # what was begun must not reach into the next episode
            return
        works_s = time.monotonic()
        _sleep_until(works_s + s.after_s)
        episodes.append(
            Episode(
                name=fault.name,
                title=fault.title,
                concerns=fault.concerns,
                control_s=control_s,
                began_s=began_s,
                works_s=works_s,
                ended_s=time.monotonic(),
                supervised=fault.supervised,
                note=fault.note,
            )
        )

    # ------------------------------------------------------------------ load

    @contextmanager
    def _load(self, name: str, address: str, rate: float) -> Iterator[LoadRun]:
        s = self.settings
        longest = s.control_s + s.fault_s + s.after_s + LONGEST_MENDING_S
        phase = Phase(
            name=name,
            url=address,
            seconds=min(s.warm_up_s + 20 * s.repeats * longest, 7200.0),
            rate_per_s=rate,
            retries=self.retries,
            unique=self.unique,
        )
        with LoadRun(self._plan((phase,)), self.folder / name / "load") as load:
            yield load

    def _plan(self, phases: tuple[Phase, ...]) -> Plan:
        m = self.materials
        return Plan(phases=phases, traffic=m.traffic, surface=m.surface.to_dict())

    def _rate(self, name: str, address: str) -> tuple[float, Saturation | None]:
        s = self.settings
        if s.rate_per_s is not None:
            return s.rate_per_s, None
        warm = Phase(name="warm-up", url=address, seconds=s.warm_up_s, in_flight=2)
        ladder = [
            Phase(name=f"{n} callers", url=address, seconds=s.ladder_s, in_flight=n, seed=n) for n in s.ladder
        ]
        records = run_load(self._plan((warm, *ladder)), self.folder / name / "saturation")
        found = saturation_of(records, ladder, settle_s=0.5, begin_s=records.began_s + s.warm_up_s)
        if found.rate_per_s <= 0:
            raise BenchmarkError(f"{name}: nothing was answered: {records.counts('problem')}")
        rate = s.share * found.rate_per_s
        self.say(f"{name}: saturation {found.rate_per_s:.0f} requests/s, load {rate:.0f} requests/s")
        return rate, found


def _sleep_until(when_s: float) -> None:
    time.sleep(max(0.0, when_s - time.monotonic()))
