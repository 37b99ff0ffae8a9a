"""``python -m benchmarks chaos``: one fault after the other under load, and what callers noticed of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    from benchmarks.chaos.settings import STAGES

    parser = subparsers.add_parser(
        "chaos",
        help="faults of servers, replicas, stores and disks under load (R1 to R4)",
        description="Keep an open-loop load at half the saturation rate on the sidecar, put in one fault "
        "after the other with fault-free windows between, and say what callers noticed: failed rankings, "
        "latency, reasons, time to detect and to come back. About 15 minutes; nothing else should run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for chaos.json, .md, .html, .svg and .png")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which stages")
    add("--only", nargs="+", default=[], metavar="FAULT", help="only these faults; a wrong name lists them")
    add("--run", type=Path, default=None, help="serve this run; default: distilled parts, never fitted")
    add(
        "--quick", action="store_true", help="test the whole path in half a minute with stand-ins; no figures"
    )
    add("--rate", type=float, default=None, help="requests/s instead of half the saturation rate")
    add("--fault-s", type=float, default=8.0, help="seconds of each fault")
    add("--repeats", type=int, default=1, help="how often each fault is put in; its windows are pooled")
    add("--control-s", type=float, default=8.0, help="fault-free seconds before each")
    add("--budget-ms", type=float, default=10.0, help="of the value network")
    add("--seed", type=int, default=0, help="of the simulated feed")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Put the faults in, write, show.

    Raises:
        BenchmarkError: no fault could be put in, or a stage could not be run.
    """
    from benchmarks.chaos.page import render_page
    from benchmarks.chaos.pictures import stage_timeline
    from benchmarks.chaos.report import as_json, as_markdown
    from benchmarks.chaos.settings import ChaosSettings
    from benchmarks.chaos.stages import Stages
    from benchmarks.cost.machine import SERVING_PACKAGES, describe_machine
    from benchmarks.materials import prepare_materials
    from benchmarks.pages import render_png, standalone
    from triton_models.files import write_atomically, write_json

    settings = ChaosSettings(
        stages=tuple(options.stages),
        only=tuple(options.only),
        rate_per_s=options.rate,
        fault_s=options.fault_s,
        repeats=options.repeats,
        control_s=options.control_s,
        budget_ms=options.budget_ms,
    )
    settings = settings.quickened() if options.quick else settings
    out: Path = options.out.resolve()
    machine = describe_machine(packages=SERVING_PACKAGES, gpu=False)
    materials = prepare_materials(
        out / "materials", run=options.run, seed=options.seed, models=not settings.quick, say=say
    )
    measured = Stages(settings, materials, out / "work", say).run(machine)
    if not any(stage.outcomes for stage in measured.stages):
        broken = [f"{name}: {why}" for stage in measured.stages for name, why in stage.broken.items()]
        raise BenchmarkError(f"no fault was put in: {'; '.join([*measured.failed.values(), *broken])}")
    text = as_markdown(measured)
    write_json(out / "chaos.json", as_json(measured))
    write_atomically(out / "chaos.md", text)
    write_atomically(out / "chaos.html", render_page(measured))
    for stage in measured.stages:
        write_atomically(out / f"chaos-{stage.name}.svg", standalone(stage_timeline(stage)))
    if not settings.quick:
        render_png(out / "chaos.html", out / "chaos.png", height=2400)
    say("\n" + text)
    say(f"written: chaos.json, .md, .html and the pictures, in {out}")
    if measured.failed:
        raise BenchmarkError(f"stages that could not be run: {', '.join(measured.failed)}")
