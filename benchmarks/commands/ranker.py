"""``python -m benchmarks ranker``: the simulated feed's reference ranker, to a Triton repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.commands.simulate import DEFAULT_SURFACE


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "ranker",
        help="publish the simulated feed's reference ranker to a Triton repository",
        description="Publish the reference ranker of a simulated feed as the Triton model 'ranker': "
        "user_embedding, context and candidate_ids in, one score per candidate and head out.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="model repository")
    world = parser.add_mutually_exclusive_group()
    world.add_argument("--logs", type=Path, metavar="LOGS", help="the ranker of the world of these logs")
    world.add_argument("--seed", type=int, default=0, help="the ranker of the world of this seed")
    parser.add_argument("--surface", type=Path, default=DEFAULT_SURFACE, metavar="FILE", help="with --seed")
    parser.add_argument("--backend", choices=("python", "onnxruntime"), default="python", help="of Triton")
    parser.add_argument("--keep", type=int, default=3, help="versions to keep")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Build the graph and publish it."""
    from benchmarks.feed.ranker_graph import RANKER, publish_ranker

    version = publish_ranker(_world(options), options.repository, backend=options.backend, keep=options.keep)
    sys.stdout.write(f"ranker: {options.repository / RANKER / str(version)} (version {version})\n")


def _world(options: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from benchmarks.feed.config import WorldConfig
    from benchmarks.feed.world import World, load_world
    from triton_models.errors import SimulationError
    from triton_models.surface import describe_validation_error, load_surface

    if options.logs is not None:
        return load_world(options.logs)
    try:
        return World(WorldConfig(seed=options.seed), load_surface(options.surface))
    except ValidationError as error:
        raise SimulationError(f"no such world: {describe_validation_error(error)}") from error
