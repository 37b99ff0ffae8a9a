"""``python -m ray_train distil``: a fitted run → a cheaper run that makes the same choices."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_train.commands.validate import add_check_options, check_options
from triton_models.errors import ConfigurationError

STUDENT_SIZES = {
    "history_pools": "learned queries that pool the history",
    "history_width": "width of the encoded history",
    "user_width": "width of the user part",
    "state_width": "width of the state vector",
    "backbone_width": "width of the backbone",
    "backbone_blocks": "blocks of the backbone",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    from ray_train.distil_settings import DistilSettings

    fields = DistilSettings.model_fields
    parser = subparsers.add_parser(
        "distil",
        help="make a cheaper network that chooses like a fitted one",
        description="Fit a small network to a run's own answers on logged states, show on the hold-out how "
        "close its policies are, and write it as a run of its own, for sweep and export.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("logs", metavar="LOGS", help="folder of Parquet files, local or a pyarrow URI")
    add("--run", required=True, metavar="RUN", help="folder of the fitted run, the teacher")
    add("--out", required=True, metavar="RUN", help="folder of the student's run, new")
    add("--rows", type=int, default=fields["rows"].default, help="most logged states to learn from")
    add("--epochs", type=int, default=fields["epochs"].default, help="passes over them")
    add("--batch-size", type=int, default=fields["batch_size"].default, help="rows per step")
    add("--learning-rate", type=float, default=fields["learning_rate"].default, help="peak of the schedule")
    add("--seed", type=int, default=fields["seed"].default, help="of the weights and the order of rows")
    add("--gpu", action="store_true", help="on this machine's GPU")
    add(
        "--max-unexplained",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="most of the teacher's variance, and of that of its action effects, that may be left",
    )
    add("--force", action="store_true", help="write the run even if it is not the teacher's equal")
    add("--ray-address", metavar="ADDRESS", help="Ray cluster of the comparison; default: a local one")
    for name, text in STUDENT_SIZES.items():
        add(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS, help=text)
    add_check_options(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Distil, compare, write, say."""
    from ray_train.distil_settings import DistilSettings, student_config
    from ray_train.distilled_run import distil_run
    from triton_models.doors import say
    from triton_models.runs import load_run
    from triton_models.surface import describe_validation_error

    share, now = check_options(options)
    if not 0 <= options.max_unexplained <= 1:
        raise ConfigurationError(f"--max-unexplained must lie between 0 and 1, got {options.max_unexplained}")
    teacher = load_run(options.run)
    sizes: dict[str, Any] = {name: getattr(options, name) for name in STUDENT_SIZES if hasattr(options, name)}
    given = {name: getattr(options, name) for name in DistilSettings.model_fields if hasattr(options, name)}
    try:
        settings = DistilSettings.model_validate(given)
        network = student_config(teacher.load_network().config, **sizes)
    except ValidationError as error:
        raise ConfigurationError(f"distil: {describe_validation_error(error)}") from error
    folder = distil_run(
        teacher=teacher,
        logs=options.logs,
        out=Path(options.out),
        network=network,
        settings=settings,
        max_unexplained=options.max_unexplained,
        force=options.force,
        max_bad_share=share,
        gpu=options.gpu,
        address=options.ray_address,
        now=now,
        say=say,
    )
    say(f"run        {folder} (learning curve: {folder / 'learning.html'})")
