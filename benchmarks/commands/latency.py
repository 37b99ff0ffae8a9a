"""``python -m benchmarks latency``: what the control adds to a ranking; what the sidecar carries."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from triton_models.doors import say


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "latency",
        help="what the control adds to a ranking's latency (P1, P2), and the sidecar's capacity (P3)",
        description="Start the sidecar with real servers, find its saturation, compare the control on and "
        "off in interleaved blocks under Locust, in open and closed loop; then its capacity beside a bare "
        "application that makes the same two calls. About 20 minutes; nothing else should run meanwhile.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for latency.json, .md, .html, .svg and .png")
    add("--parts", nargs="+", choices=("p1", "p2", "p3"), default=None, help="default: all")
    add("--run", type=Path, default=None, help="serve this run; default: distilled parts, never fitted")
    add(
        "--quick", action="store_true", help="test the whole path in half a minute with stand-ins; no figures"
    )
    add("--blocks", type=int, default=24, help="blocks of control on and off")
    add("--block-s", type=float, default=4.0, help="seconds of each arm of a block")
    add("--turns", type=int, default=12, help="turns of every contestant of P3")
    add("--arrivals", choices=("poisson", "constant"), default="poisson", help="of the open loop")
    add("--rate", type=float, default=None, help="requests/s instead of a share of the saturation rate")
    add("--budget-ms", type=float, default=10.0, help="of the value network")
    add("--inject-ms", type=float, default=0.0, help="delay really put into the on arm: to be found again")
    add("--host", choices=("ray", "plain"), nargs="+", default=None, help="how the sidecar runs in P1")
    add("--seed", type=int, default=0, help="of the simulated feed")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Measure, write, show.

    Raises:
        PutsError: something cannot be started or answers wrongly.
    """
    from benchmarks.cost.machine import SERVING_PACKAGES, describe_machine
    from benchmarks.latency.measure import Bench
    from benchmarks.latency.page import render_page
    from benchmarks.latency.parts import measure_latency
    from benchmarks.latency.report import as_json, as_markdown
    from benchmarks.materials import prepare_materials
    from benchmarks.pages import render_png
    from triton_models.files import write_atomically, write_json

    settings = _settings(options)
    out: Path = options.out.resolve()
    machine = describe_machine(packages=SERVING_PACKAGES, gpu=False)
    materials = prepare_materials(
        out / "materials", run=options.run, seed=options.seed, models=not settings.quick, say=say
    )
    measured = measure_latency(Bench(settings, materials, out / "work", say), machine)
    text = as_markdown(measured)
    write_json(out / "latency.json", as_json(measured))
    write_atomically(out / "latency.md", text)
    write_atomically(out / "latency.html", render_page(measured))
    _write_pictures(measured, out)
    if not settings.quick:
        render_png(out / "latency.html", out / "latency.png")
    say("\n" + text)
    say(f"written: latency.json, .md, .html and the pictures, in {out}")


def _settings(options: argparse.Namespace) -> Any:
    from benchmarks.latency.settings import PARTS, LatencySettings

    settings = LatencySettings(
        parts=tuple(options.parts or PARTS),
        blocks=options.blocks,
        block_s=options.block_s,
        turns=options.turns,
        arrivals=options.arrivals,
        rate_per_s=options.rate,
        budget_ms=options.budget_ms,
        inject_ms=options.inject_ms,
    )
    if options.host:
        settings = replace(settings, hosts=tuple(options.host))
    return settings.quickened() if options.quick else settings


def _write_pictures(measured: Any, out: Path) -> None:
    from benchmarks.latency import pictures
    from benchmarks.latency.report import quantile_rows, ratios
    from benchmarks.pages import standalone
    from triton_models.files import write_atomically

    for number, one in enumerate(measured.paired):
        name = f"{one.part.lower()}-{number}"
        for kind, svg in (
            ("latency", pictures.distributions(one, "frame")),
            ("added", pictures.per_block(one, quantile_rows(one), "frame")),
        ):
            write_atomically(out / f"{name}-{kind}.svg", standalone(svg))
    if measured.capacity:
        write_atomically(out / "p3-capacity.svg", standalone(pictures.capacities(measured, ratios(measured))))
