"""``python -m benchmarks demo | up | down``: the demonstration, and the stack it leaves running."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from triton_models.errors import BenchmarkError

DEFAULT_OUT = Path(".run/demo")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the three commands."""
    demo = subparsers.add_parser("demo", help="the whole loop on real parts, about ten minutes on two cores")
    _add_sizes(demo)
    demo.set_defaults(command=_demo)
    up = subparsers.add_parser("up", help="leave the demonstration's stack running (make up)")
    _add_sizes(up)
    up.set_defaults(command=_up)
    down = subparsers.add_parser("down", help="end what `up` started, and only that (make down)")
    down.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the folder given to up")
    down.set_defaults(command=_down)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for everything it makes")
    parser.add_argument("--requests", type=int, default=300_000, help="logged requests to simulate")
    parser.add_argument("--epochs", type=int, default=6, help="training epochs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the simulated feed")
    parser.add_argument("--online-requests", type=int, default=20_000, help="new requests to measure on")
    parser.add_argument("--load-duration", type=int, default=30, help="seconds of Locust load")


def _settings(options: argparse.Namespace) -> Any:
    from benchmarks.demo import DemoSettings

    for name in ("requests", "epochs", "online_requests", "load_duration"):
        if getattr(options, name) < 1:
            raise BenchmarkError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}"
            )
    return DemoSettings(
        out=options.out.resolve(),
        requests=options.requests,
        epochs=options.epochs,
        seed=options.seed,
        online_requests=options.online_requests,
        load_duration_s=options.load_duration,
    )


def _demo(options: argparse.Namespace) -> None:
    from rich.console import Console

    from benchmarks.demo import demonstrate

    demonstrate(_settings(options), Console())


def _up(options: argparse.Namespace) -> None:
    from rich.console import Console

    from benchmarks.demo import start

    console = Console()
    folders, stack = start(_settings(options), console)
    console.print(f"\nthe sidecar answers at [bold]{stack.address}[/]; try")
    console.print(f"  curl {stack.address}/readyz", highlight=False)
    console.print(
        f"  {sys.executable} -m benchmarks locust --host {stack.address} --logs {folders.logs} "
        f"--out {folders.load}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"log: {folders.root / 'stack.log'}; end it with make down")


def _down(options: argparse.Namespace) -> None:
    from benchmarks.stack import stop_stack

    ended = stop_stack(options.out.resolve())
    sys.stdout.write("the stack has ended\n" if ended else "nothing is running\n")
