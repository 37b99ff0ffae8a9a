"""The door of this room: ``python -m triton_models COMMAND``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from triton_models.doors import new_parser, run_door

COMMANDS = ("export", "serve", "rollout", "verify", "versions")
"""Modules of :mod:`triton_models.commands`, each with ``add_parser(subparsers)``."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of this room."""
    parser = new_parser("python -m triton_models", "Value network → Triton model repository → tritonserver.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"triton_models.commands.{name}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the door."""
    return run_door(build_parser(), arguments)
