"""``python -m triton_models rollout | rollback``: another version in a running server, no request lost."""

from __future__ import annotations

import argparse

from triton_models.commands.options import Subparsers, add_model, add_repository, add_url, positive
from triton_models.doors import say


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Register the commands."""
    rollout = subparsers.add_parser(
        "rollout",
        help="bring a version into a running server without losing a request",
        description="Load a version beside the one that serves, check it there against its stored cases, "
        "switch, unload the old one, and select it in the repository. On any failure the old version goes "
        "on. The server must run on this repository with explicit model control, as serve does.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_options(rollout, "version to roll out; the newest if unset")
    rollout.set_defaults(command=run, back=False)
    rollback = subparsers.add_parser(
        "rollback",
        help="go back to the version that was served before",
        description="The same as rollout, to the version that was served before the present one; again goes "
        "one further back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_options(rollback, "version to go back to; the one served before if unset")
    rollback.set_defaults(command=run, back=True)


def _add_options(parser: argparse.ArgumentParser, version_help: str) -> None:
    add_url(parser)
    add_repository(parser)
    parser.add_argument("--version", type=positive, metavar="N", help=version_help)
    add_model(parser)
    parser.add_argument("--force", action="store_true", help="accept a version for another control surface")


def run(options: argparse.Namespace) -> int:
    """Roll out, or back."""
    from triton_models.remote import RemoteServer
    from triton_models.rollout import roll_out

    with RemoteServer(options.url) as server:
        report = roll_out(
            server,
            options.repository,
            model=options.model,
            version=options.version,
            back=options.back,
            force=options.force,
            tell=say,
        )
    if report.largest_difference is not None:
        largest = f"{report.largest_difference:.2g}"
        say(f"answers: largest difference from torch {largest} over {report.cases} cases")
    where = f"{report.model} at {options.url}"
    if not report.changed:
        say(f"{where}: version {report.new} was there already, and is selected")
        return 0
    before = f"version {report.old}" if report.old is not None else "nothing"
    say(f"{where}: version {report.new} now, {before} before; {report.seconds:.1f} s")
    if report.old is not None:
        command = f"rollout --version {report.old}" if options.back else "rollback"
        say(f"undo: python -m triton_models {command} {options.url} --repository {options.repository}")
    return 0
