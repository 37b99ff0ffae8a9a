"""``python -m ray_train``: logs → value network, its frontier; decisions and events → logs, lifts."""

from __future__ import annotations

from collections.abc import Sequence

from triton_models.doors import run_commands

COMMANDS = ("validate", "fit", "distil", "sweep", "join", "experiment")
"""Modules of :mod:`ray_train.commands`, each with ``add_parser(subparsers)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_commands(
        "python -m ray_train",
        "Exploration logs to a value network, its frontier, and what it did online.",
        "ray_train.commands",
        COMMANDS,
        arguments,
    )
