"""``python -m ray_train``: exploration logs → value network, its evaluation, its frontier."""

from __future__ import annotations

from collections.abc import Sequence

from triton_models.doors import run_commands

COMMANDS = ("validate", "fit", "distil", "sweep")
"""Modules of :mod:`ray_train.commands`, each with ``add_parser(subparsers)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_commands(
        "python -m ray_train",
        "Exploration logs to a value network, and its frontier.",
        "ray_train.commands",
        COMMANDS,
        arguments,
    )
