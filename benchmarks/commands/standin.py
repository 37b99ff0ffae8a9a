"""``python -m benchmarks standin``: a real KServe v2 server that stands for a ranker or a value network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.commands.simulate import DEFAULT_SURFACE
from triton_models.errors import BenchmarkError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "standin",
        help="a KServe v2 server that stands for a ranker or a value network, honest or faulty",
        description="Serve real tensors after a replayed time. Behaviour is read as JSON lines from standard "
        "input, whose end ends the server; the first line it prints says its address.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", choices=("ranker", "value_network"))
    parser.add_argument("--surface", type=Path, default=DEFAULT_SURFACE, metavar="FILE")
    parser.add_argument("--address", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0: a free one")
    parser.add_argument(
        "--behaviour",
        default='{"p50_ms": 15, "p99_ms": 40}',
        metavar="JSON",
        help="mode, p50_ms, p99_ms, extra_ms",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Serve until the input ends.

    Raises:
        BenchmarkError: an impossible behaviour, or an address that cannot be bound.
    """
    import asyncio
    import contextlib

    from benchmarks.stand_ins.behaviour import Behaviour
    from benchmarks.stand_ins.server import StandIn, serve
    from triton_models.surface import load_surface

    try:
        behaviour = Behaviour.parse(json.loads(options.behaviour))
    except ValueError as error:
        raise BenchmarkError(f"--behaviour: not JSON: {error}") from error
    stand_in = StandIn(kind=options.kind, surface=load_surface(options.surface), behaviour=behaviour)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(stand_in, options.address))
