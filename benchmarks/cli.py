"""``python -m benchmarks``: the simulated feed, its ranker, load, and the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from triton_models.doors import new_parser, run_door

COMMANDS = ("simulate", "ranker", "locust", "demo")
"""Modules of :mod:`benchmarks.commands`, each with ``add_parser(subparsers)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = new_parser("python -m benchmarks", "The simulated feed, benchmarks, and the demonstration.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = f"benchmarks.commands.{name}"
        if find_spec(module) is not None:
            import_module(module).add_parser(subparsers)
    return run_door(parser, arguments)
