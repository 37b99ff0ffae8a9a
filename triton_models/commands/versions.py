"""``python -m triton_models versions | select``: what a repository holds, and which of it is served."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from triton_models.commands.options import Subparsers, add_model, add_repository, positive
from triton_models.config_pbtxt import config_parameters
from triton_models.doors import say
from triton_models.errors import RepositoryError
from triton_models.published import DEFAULT_REPOSITORY, require_model, version_config


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Register the commands."""
    listing = subparsers.add_parser(
        "versions",
        help="list the versions in a repository",
        description="List the versions of a model: which is served, and where each comes from.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    listing.add_argument(
        "repository",
        metavar="REPO",
        type=Path,
        nargs="?",
        default=DEFAULT_REPOSITORY,
        help="Triton model repository",
    )
    add_model(listing)
    listing.set_defaults(command=run)
    selecting = subparsers.add_parser(
        "select",
        help="choose the version that the next start serves",
        description="Choose the version that the next start serves. It asks no server; for a running one use "
        "rollout or rollback.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    selecting.add_argument("version", type=positive, metavar="N", help="version to serve")
    add_repository(selecting)
    add_model(selecting)
    selecting.set_defaults(command=select)


def run(options: argparse.Namespace) -> int:
    """List the versions."""
    published = require_model(options.repository, options.model)
    for version in published.versions:
        mark = "*" if version == published.served else " "
        try:
            told = _told(config_parameters(version_config(options.repository, options.model, version)))
        except RepositoryError as error:
            told = f"cannot be served: {error}"
        say(f"{mark} {version:>4}  {told}")
    before = ", ".join(map(str, reversed(published.served_before))) or "none"
    say(f"* is served from {options.repository}; served before it, newest first: {before}")
    return 0


def _told(parameters: Mapping[str, str]) -> str:
    try:
        window = "…".join(day[:10] for day in json.loads(parameters["data_window"])["train_window"])
    except (KeyError, ValueError, TypeError):
        window = "unknown"
    surface, code = (parameters.get(name, "unknown")[:12] for name in ("surface_fingerprint", "code_version"))
    return f"run {parameters.get('run_id', 'unknown')}  trained on {window}  surface {surface}  code {code}"


def select(options: argparse.Namespace) -> int:
    """Choose the served version."""
    from triton_models.selection import select_version

    before = require_model(options.repository, options.model).served
    select_version(options.repository, options.model, options.version)
    say(f"{options.model}: the next start serves version {options.version}; before, it was version {before}")
    return 0
