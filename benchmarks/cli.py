"""``python -m benchmarks``: the simulated feed, its ranker, load, and the demonstration."""

from __future__ import annotations

from collections.abc import Sequence

from triton_models.doors import run_commands

COMMANDS = (
    "simulate",
    "ranker",
    "locust",
    "demo",
    "cost",
    "beside",
    "value",
    "estimators",
    "learning",
    "paper",
    "gate",
    "sweepcost",
    "finer",
    "latency",
    "chaos",
    "record",
    "loop",
    "standin",
    "fuzz",
)
"""Modules of :mod:`benchmarks.commands`, each with ``add_parser(subparsers)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_commands(
        "python -m benchmarks",
        "The simulated feed, benchmarks, and the demonstration.",
        "benchmarks.commands",
        COMMANDS,
        arguments,
    )
