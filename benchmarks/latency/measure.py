"""Starts what is measured, puts the load on it, and brings the records into blocks and turns.

P1: the ranker is a stand-in that waits a replayed time, as a ranker on another machine would look from
here; value network, sidecar and load share this machine. P2: the real reference ranker as well. P3: the
sidecar's capacity beside a bare application that makes the same two calls, all in turns in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.latency.blocks import Block, Saturation, order_of_arms
from benchmarks.latency.settings import LatencySettings
from benchmarks.load.driver import run_load
from benchmarks.load.plan import Phase, Plan
from benchmarks.load.records import Records
from benchmarks.materials import Materials
from benchmarks.sidecar.hosting import plain_sidecar, ray_sidecar
from benchmarks.stand_ins.behaviour import Behaviour
from benchmarks.stand_ins.process import StandInProcess
from triton_models.errors import BenchmarkError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Blocks of one condition."""

    part: str
    title: str
    loop: str
    """``open, 120 requests/s`` or ``closed, 4 callers``."""
    share: float | None
    """Of the saturation rate."""
    saturation: Saturation
    blocks: tuple[Block, ...]
    requests: int
    failures: int
    problems: Mapping[str, int]
    chosen: int
    """Answers of the on arm that the value network chose."""
    asked: int
    """Answers of the on arm."""
    fallbacks: Mapping[str, int]
    lateness_ms: tuple[float, float]
    """p50 and p99 of how much later than due the load sent its requests; it is inside the latencies."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything of one run."""

    settings: LatencySettings
    network: str
    paired: tuple[Paired, ...]
    capacity: Mapping[str, tuple[float, ...]]
    """P3: contestant → requests/s of each turn."""
    in_flight: int = 0
    """P3: callers."""
    capacity_chosen: Mapping[str, float]
    """P3: share of each sidecar's answers that the value network chose: whether it made both calls."""
    failures: int = 0
    """P3."""
    machine: Mapping[str, object]


class Bench:
    """One measurement: where it works, with what, and how it says what it does."""

    def __init__(self, settings: LatencySettings, materials: Materials, folder: Path, say: Say) -> None:
        self.settings = settings
        self.materials = materials
        self.folder = folder
        self.say = say

    # ------------------------------------------------------------------ servers

    @contextmanager
    def replayed_ranker(self) -> Iterator[str]:
        """The stand-in; its address."""
        s = self.settings
        behaviour = Behaviour(p50_ms=s.ranker_p50_ms, p99_ms=s.ranker_p99_ms)
        with StandInProcess("ranker", self.materials.surface_file, behaviour) as ranker:
            yield ranker.address

    @contextmanager
    def sidecar(self, host: str, *, ranker: str | None, name: str) -> Iterator[str]:
        """A sidecar and its value network; ``ranker`` None: the real one is started as well."""
        self.say(f"starting the sidecar ({name})")
        folder = self.folder / name
        m = self.materials
        with ExitStack() as stack:
            if host == "plain":
                value = stack.enter_context(StandInProcess("value_network", m.surface_file, Behaviour()))
                config = {
                    "surface": m.surface.to_dict(),
                    "value_network": {"addresses": [value.address], "budget_ms": self.settings.budget_ms},
                    "ranker": {"addresses": [ranker]},
                }
                yield stack.enter_context(plain_sidecar(folder, config))
                return
            arguments = ["--surface", str(m.surface_file), "--budget-ms", str(self.settings.budget_ms)]
            arguments += ["--repository", str(m.repository), "--log-dir", str(folder)]
            arguments += ["--ranker", ranker] if ranker else ["--ranker-repository", str(m.ranker_repository)]
            yield stack.enter_context(ray_sidecar(folder, arguments)).address

    # ------------------------------------------------------------------ load

    def load(self, phases: list[Phase], name: str) -> Records:
        """Run phases; what was seen."""
        m = self.materials
        plan = Plan(
            phases=tuple(phases),
            traffic=m.traffic,
            surface=m.surface.to_dict(),
            arrivals=self.settings.arrivals,
        )
        self.say(f"{name}: {len(phases)} phases, {plan.seconds:.0f} s")
        return run_load(plan, self.folder / "load" / name.replace(" ", "-").replace("/", "-"))

    def saturation(self, address: str, name: str, *, bare: bool = False) -> Saturation:
        """Closed loops of growing width, control on.

        Raises:
            BenchmarkError: nothing was answered.
        """
        s = self.settings
        phases = [
            Phase(name=f"{n} callers", url=address, seconds=s.ladder_s, in_flight=n, seed=n, bare=bare)
            for n in s.ladder
        ]
        records = self.load([self._warm_up(address, bare=bare), *phases], f"{name} saturation")
        found = saturation_of(records, phases, settle_s=s.settle_s, begin_s=records.began_s + s.warm_up_s)
        if found.rate_per_s <= 0:
            raise BenchmarkError(f"{name}: nothing was answered: {records.counts('problem')}")
        self.say(
            f"{name}: saturation {found.rate_per_s:.0f} requests/s, reached with {found.in_flight} callers"
        )
        return found

    def _warm_up(self, address: str, *, bare: bool = False) -> Phase:
        seconds = self.settings.warm_up_s
        return Phase(name="warm-up", url=address, seconds=seconds, in_flight=2, seed=999, bare=bare)

    def paired(
        self,
        address: str,
        *,
        part: str,
        title: str,
        saturation: Saturation,
        share: float | None = None,
        callers: int | None = None,
        bare: bool = False,
    ) -> Paired:
        """Blocks of control on and off: open loop at a share of the saturation rate, or closed."""
        s = self.settings
        rate = None if callers else s.rate_per_s or (share or s.share) * saturation.rate_per_s
        phases = [self._warm_up(address, bare=bare)]
        for block in range(s.blocks):
            for control in order_of_arms(block):
                phases.append(
                    Phase(
                        name=f"control {'on' if control else 'off'}",
                        url=address,
                        seconds=s.block_s,
                        rate_per_s=rate,
                        in_flight=callers,
                        control=control,
                        tracestate=f"puts-delay={s.inject_ms:g}" if control and s.inject_ms else "",
                        seed=block,
                        bare=bare,
                    )
                )
        loop = f"closed, {callers} callers" if callers else f"open, {rate:.0f} requests/s"
        records = self.load(phases, f"{part} {title} {loop.split(',')[0]}")
        return self._as_paired(records, phases, part, title, loop, None if callers else share, saturation)

    def _as_paired(
        self,
        records: Records,
        phases: list[Phase],
        part: str,
        title: str,
        loop: str,
        share: float | None,
        saturation: Saturation,
    ) -> Paired:
        s = self.settings
        numbers = records["phase"]
        begins = records.began_s + np.cumsum([0.0, *(phase.seconds for phase in phases[:-1])])
        counted = records.where((numbers > 0) & (records["due_s"] >= begins[numbers] + s.settle_s))
        on = np.array([phase.control for phase in phases])[counted["phase"]]
        right, block = counted.ok, (counted["phase"] - 1) // 2
        ms = counted.latency_ms
        asked = counted.where(on & right)
        lateness = (counted["sent_s"] - counted["due_s"]) * 1e3
        return Paired(
            part=part,
            title=title,
            loop=loop,
            share=share,
            saturation=saturation,
            blocks=tuple(
                Block(ms[right & on & (block == b)], ms[right & ~on & (block == b)]) for b in range(s.blocks)
            ),
            requests=len(counted),
            failures=int((~right).sum()),
            problems=counted.counts("problem"),
            chosen=int((asked["source"] == asked.code("value_network")).sum()),
            asked=len(asked),
            fallbacks=asked.counts("reason"),
            lateness_ms=(float(np.quantile(lateness, 0.5)), float(np.quantile(lateness, 0.99))),
        )


def saturation_of(
    records: Records, phases: Sequence[Phase], *, settle_s: float, begin_s: float
) -> Saturation:
    """Rates of closed phases that follow a warm-up, from ``begin_s`` on."""
    rates: dict[int, float] = {}
    chosen: dict[int, float] = {}
    for number, phase in enumerate(phases, start=1):
        callers = phase.in_flight or 0
        rates[callers] = rate_of(records, number, phase, settle_s, begin_s)
        chosen[callers] = 1.0 if phase.bare else chosen_share(records.where(records["phase"] == number))
        begin_s += phase.seconds
    return Saturation(rates=rates, chosen=chosen)


def chosen_share(records: Records) -> float:
    """Share of the right answers that the value network chose."""
    right = records.where(records.ok)
    return float((right["source"] == right.code("value_network")).mean()) if len(right) else 0.0


def rate_of(records: Records, number: int, phase: Phase, settle_s: float, begin_s: float) -> float:
    """Right answers a second of a closed phase, its first moments left out."""
    mine = records.where((records["phase"] == number) & records.ok)
    ended = mine["ended_s"]
    inside = (ended >= begin_s + settle_s) & (ended < begin_s + phase.seconds)
    return float(inside.sum() / (phase.seconds - settle_s))
