"""``python -m ray_train``: exploration logs → value network, its evaluation, its frontier."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from triton_models.doors import new_parser, run_door

COMMANDS = ("validate", "fit", "sweep")
"""Modules of :mod:`ray_train.commands`, each with ``add_parser(subparsers)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = new_parser("python -m ray_train", "Exploration logs to a value network, and its frontier.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = f"ray_train.commands.{name}"
        if find_spec(module) is not None:
            import_module(module).add_parser(subparsers)
    return run_door(parser, arguments)
