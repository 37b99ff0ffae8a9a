"""The three parts, P1 to P3 of DESIGN.md's table."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.blocks import Saturation
from benchmarks.latency.measure import Bench, Measured, Paired, chosen_share, rate_of
from benchmarks.load.plan import Phase
from benchmarks.sidecar.contestants import BARE, CONTESTANTS, SIDECAR, TENSORS, Surroundings
from serve.up import BESIDE_RANKER_NICENESS, cores_beside_ranker
from triton_models.errors import BenchmarkError
from triton_models.server import EmbeddedServer


def measure_latency(bench: Bench, machine: Mapping[str, Any]) -> Measured:
    """Every part that was asked for.

    Raises:
        PutsError: something did not start, or answered wrongly throughout.
    """
    parts = bench.settings.parts
    paired: list[Paired] = []
    capacity: dict[str, tuple[float, ...]] = {}
    chosen: dict[str, float] = {}
    in_flight = failures = 0
    if "p1" in parts:
        paired += replayed(bench)
    if "p2" in parts:
        paired += shared(bench)
    if "p3" in parts:
        capacity, chosen, in_flight, failures = capacities(bench)
    return Measured(
        settings=bench.settings,
        network=bench.materials.network,
        paired=tuple(paired),
        capacity=capacity,
        capacity_chosen=chosen,
        in_flight=in_flight,
        failures=failures,
        machine=machine,
    )


def replayed(bench: Bench) -> list[Paired]:
    """P1: the ranker on another machine; open loop at half the saturation rate, and closed loop.

    Beside it, at the same rate, what the second call alone adds to a bare application.
    """
    s, found = bench.settings, []
    for host in s.hosts:
        with bench.replayed_ranker() as ranker, bench.sidecar(host, ranker=ranker, name=f"p1-{host}") as at:
            saturation = bench.saturation(at, f"p1 {host}")
            title = "ranker elsewhere" if host == "ray" else f"ranker elsewhere, {host} uvicorn"
            found.append(bench.paired(at, part="P1", title=title, saturation=saturation, share=s.share))
            if not s.quick:
                found.append(
                    bench.paired(at, part="P1", title=title, saturation=saturation, callers=s.closed_callers)
                )
        if host == "ray" and not s.quick:
            with bench.replayed_ranker() as ranker:
                found.append(_second_call(bench, ranker, "P1", saturation, s.share))
    return found


def _second_call(bench: Bench, ranker: str, part: str, saturation: Saturation, share: float) -> Paired:
    """The bare application with its call to the value network and without, at a rate of the sidecar's."""
    m = bench.materials
    if m.repository is None:
        raise BenchmarkError(f"{part.lower()} needs a value network, not a stand-in")
    niceness, cores = BESIDE_RANKER_NICENESS, cores_beside_ranker()
    with EmbeddedServer(m.repository, niceness=niceness, cores=cores) as value:
        folder = bench.folder / f"{part.lower()}-bare"
        around = _surroundings(bench, folder, value, ranker)
        with CONTESTANTS[BARE](around) as at:
            title = f"{BARE}, its second call"
            paired = bench.paired(at, part=part, title=title, saturation=saturation, share=share, bare=True)
    # Not a share of its own saturation rate: the target is the sidecar's.
    return replace(paired, share=None)


def shared(bench: Bench) -> list[Paired]:
    """P2: ranker, value network, sidecar and load on the same cores.

    Beside it, at the lowest rate, what the second call alone adds to a bare application.
    """
    s, found = bench.settings, []
    with bench.sidecar("ray", ranker=None, name="p2") as at:
        saturation = bench.saturation(at, "p2")
        for share in s.shares:
            title = f"all on these cores, {share:.0%} of saturation"
            found.append(bench.paired(at, part="P2", title=title, saturation=saturation, share=share))
    if bench.materials.ranker_repository is not None:
        with EmbeddedServer(bench.materials.ranker_repository) as ranker:
            found.append(_second_call(bench, ranker.grpc_address, "P2", saturation, min(s.shares)))
    return found


def capacities(
    bench: Bench,
) -> tuple[dict[str, tuple[float, ...]], dict[str, float], int, int]:
    """P3: requests/s of every contestant in turns; shares chosen; the callers used; failed requests.

    The sidecars are given time and calls enough never to fall back, so all contestants do the same work.
    The number of callers is the fewest with which the bare application saturates.
    """
    s, m = bench.settings, bench.materials
    if m.repository is None:
        raise BenchmarkError("p3 needs a value network, not a stand-in")
    with ExitStack() as stack:
        ranker = stack.enter_context(bench.replayed_ranker())
        value = stack.enter_context(EmbeddedServer(m.repository))
        around = _surroundings(bench, bench.folder / "p3", value, ranker)
        running = {}
        for name, begin_one in CONTESTANTS.items():
            bench.say(f"p3: starting {name}")
            running[name] = stack.enter_context(begin_one(around))
        running[TENSORS] = running[SIDECAR]
        saturation = bench.saturation(running[BARE], "p3 bare", bare=True)
        callers = max(saturation.in_flight, 2)
        names, phases = _turns(bench, running, callers)
        records = bench.load(phases, "p3 turns")
    rates: dict[str, list[float]] = {name: [] for name in running}
    chosen = {
        name: chosen_share(
            records.where(np.isin(records["phase"], [i for i, n in enumerate(names) if n == name]))
        )
        for name in running
        if name != BARE
    }
    begin = records.began_s
    for number, (name, phase) in enumerate(zip(names, phases, strict=True)):
        if name:
            rates[name].append(rate_of(records, number, phase, s.settle_s, begin))
        begin += phase.seconds
    wrong = int((~records.ok).sum())
    if wrong:
        bench.say(f"p3: {wrong} of {len(records)} requests failed: {records.counts('problem')}")
    return {name: tuple(values) for name, values in rates.items()}, chosen, callers, wrong


def _surroundings(bench: Bench, folder: Path, value: EmbeddedServer, ranker: str) -> Surroundings:
    return Surroundings(
        materials=bench.materials,
        folder=folder,
        value=value.grpc_address,
        value_http=f"http://{value.http_address}",
        ranker=ranker,
    )


def _turns(bench: Bench, running: Mapping[str, str], callers: int) -> tuple[list[str], list[Phase]]:
    s = bench.settings
    names = [""] * len(running)
    phases = [
        Phase(
            name="warm-up",
            url=url,
            seconds=max(s.warm_up_s / 2, 0.5),
            in_flight=callers,
            seed=999,
            bare=name == BARE,
            binary=name == TENSORS,
        )
        for name, url in running.items()
    ]
    order = np.random.default_rng(0)
    keys = list(running)
    for turn in range(s.turns):
        for i in order.permutation(len(keys)):
            names.append(keys[i])
            phases.append(
                Phase(
                    name=keys[i],
                    url=running[keys[i]],
                    seconds=s.turn_s,
                    in_flight=callers,
                    seed=turn,
                    bare=keys[i] == BARE,
                    binary=keys[i] == TENSORS,
                )
            )
    return names, phases
