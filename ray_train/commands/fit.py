"""``python -m ray_train fit``: exploration logs → a run with a value network."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, get_args

from pydantic import ValidationError

from ray_train.commands.validate import add_check_options, check_options
from ray_train.learners import DEFAULT_LEARNER, LEARNERS, Learner
from ray_train.settings import FitSettings
from triton_models.errors import ConfigurationError
from triton_models.network_config import NetworkConfig

NETWORK_OPTIONS = {
    "encoder": "learned: the paper's, or cheaper parts of it; plain: without parameters, for a committee",
    "context_width": "embedding width of each context field",
    "history_encoder": "transformer: the paper's; pooling: a few learned queries",
    "history_width": "width of the encoded history",
    "history_layers": "layers of the Transformer; 0 pools the actions as they are",
    "history_heads": "its attention heads",
    "history_pools": "learned queries of pooling",
    "user_width": "width of the user part",
    "state_width": "width of the state vector",
    "action_head": "backbone: the paper's, once per action; grid: one output per grid action; "
    "committee: several small networks",
    "members": "networks of a committee",
    "action_width": "width of the action part",
    "backbone_width": "width of the backbone",
    "backbone_blocks": "blocks of the backbone",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "fit",
        help="train a value network on exploration logs",
        description="Split a log by time, check every row, train a value network on Ray Train, write RUN. "
        "The hold-out is left alone for sweep.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("logs", metavar="LOGS", help="folder of Parquet files, local or a pyarrow URI")
    parser.add_argument("--surface", required=True, metavar="FILE", help="the control surface (YAML)")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run, new")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted fit in RUN")
    _add_data_options(parser)
    _add_training_options(parser)
    _add_cluster_options(parser)
    _add_network_options(parser)
    parser.set_defaults(command=run)


def _default(name: str) -> Any:
    return FitSettings.model_fields[name].default


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--train-days", type=float, default=_default("train_days"), help="length of the training window")
    add(
        "--holdout-days", type=float, default=_default("holdout_days"), help="length of the hold-out after it"
    )
    add(
        "--selection-share",
        type=float,
        default=_default("selection_share"),
        help="newest share of the training window, kept back to choose the best epoch",
    )
    add("--max-rows", type=int, help="train on about so many rows, drawn by a hash of the request id")
    add("--gate-rows", type=int, help="judge the run on about so many rows of the hold-out; default: all")
    add_check_options(parser)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    add = group.add_argument
    add(
        "--learner",
        choices=tuple(LEARNERS),
        default=DEFAULT_LEARNER,
        help="; ".join(f"{learner.name}: {learner.summary}" for learner in LEARNERS.values()),
    )
    for name, kind, text in (
        ("epochs", int, "passes over the training rows"),
        ("batch_size", int, "rows per step over all workers"),
        ("learning_rate", float, "peak of the schedule"),
        ("weight_decay", float, "of AdamW; a committee's falls with the rows above 315,000"),
        ("count_weight", float, "of what counts above one add to bce; 0: clipped rewards only"),
    ):
        option = f"--{name.replace('_', '-')}"
        add(option, type=kind, default=argparse.SUPPRESS, help=f"{text}; default: the learner's")
    add(
        "--loss",
        choices=("mse", "bce"),
        default=argparse.SUPPRESS,
        help="squared error (Eq. 8) or cross-entropy; default: the learner's",
    )
    add("--seed", type=int, default=_default("seed"), help="of the weights and of the order of rows")
    add("--amp", action="store_true", help="automatic mixed precision")


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cluster")
    add = group.add_argument
    add("--workers", type=int, default=_default("workers"), help="training workers")
    add(
        "--cpus-per-worker",
        type=int,
        default=argparse.SUPPRESS,
        help="default: the cores of this machine shared out for a local cluster, 1 for another one",
    )
    add("--gpu", action="store_true", help="one GPU per worker")
    add(
        "--cache-mb", type=int, default=_default("cache_mb"), help="encoded rows a worker keeps in memory, MB"
    )
    add("--max-failures", type=int, default=_default("max_failures"), help="lost workers that are replaced")
    add("--ray-address", metavar="ADDRESS", help="Ray cluster; default: RAY_ADDRESS, else a local one")
    add(
        "--checkpoints",
        metavar="URI",
        help="storage that all nodes share, for checkpoints; default: RUN/checkpoints",
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network (defaults: the learner's)")
    group.add_argument("--network", metavar="FILE", help="sizes of the network (YAML)")
    for name, text in NETWORK_OPTIONS.items():
        choices = get_args(NetworkConfig.model_fields[name].annotation)
        kind = {"choices": choices} if choices else {"type": int}
        group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **kind)


def fit_settings(options: argparse.Namespace) -> FitSettings:
    """Settings out of the options.

    Raises:
        ConfigurationError: an option has an impossible value.
    """
    from triton_models.surface import describe_validation_error

    values = {name: getattr(options, name) for name in FitSettings.model_fields if hasattr(options, name)}
    local = not (options.ray_address or os.environ.get("RAY_ADDRESS"))
    if local and "cpus_per_worker" not in values:
        values["cpus_per_worker"] = max(1, (os.cpu_count() or 1) // max(1, options.workers))
    learner = LEARNERS[values.pop("learner", DEFAULT_LEARNER)]
    try:
        return learner.fit_settings(**values)
    except ValidationError as error:
        raise ConfigurationError(f"settings: {describe_validation_error(error)}") from error


def _network(options: argparse.Namespace, learner: Learner) -> NetworkConfig:
    from triton_models.surface import describe_validation_error, load_yaml

    data: Any = load_yaml(options.network) if options.network else {}
    if not isinstance(data, dict):
        raise ConfigurationError(f"{options.network}: expected a mapping of sizes such as history_width: 32")
    given = {name: getattr(options, name) for name in NETWORK_OPTIONS if hasattr(options, name)}
    try:
        return NetworkConfig.model_validate({**learner.network.model_dump(), **data, **given})
    except ValidationError as error:
        source = options.network or "network"
        raise ConfigurationError(f"{source}: {describe_validation_error(error)}") from error


def run(options: argparse.Namespace) -> None:
    """Fit, showing progress, and say where the run is."""
    _, now = check_options(options)
    settings = fit_settings(options)
    from triton_models.surface import load_surface

    surface = load_surface(options.surface)
    network = _network(options, LEARNERS[settings.learner])

    from ray_train.fit import fit

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    folder = fit(
        surface=surface,
        logs=options.logs,
        out=options.out,
        settings=settings,
        network=network,
        resume=options.resume,
        address=options.ray_address,
        checkpoints=options.checkpoints,
        now=now,
        say=say,
    )
    say(f"run        {folder} (learning curve: {folder / 'learning.html'})")
