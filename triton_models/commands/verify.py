"""``python -m triton_models verify``: is the model in a running Triton the one that was evaluated?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from triton_models.commands.options import (
    Subparsers,
    add_model,
    add_url,
    not_negative,
    positive,
)
from triton_models.doors import say
from triton_models.errors import ConfigurationError, PutsError
from triton_models.files import write_json
from triton_models.published import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from triton_models.verify import Evaluated, VerifyReport

EXIT_ANOTHER_MODEL = 1


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "verify",
        help="say whether a running server serves the model that was evaluated",
        description="Compare a running Triton with the version that a repository selects, or with a run: "
        "fingerprint, run, tensors, answers to stored cases. Then measure latency at each batch size and the "
        "batch size under load; these requests are real traffic. Exit code 0: it is the evaluated model; "
        "1: it is not; 2: bad input, or nobody answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_url(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--repository", type=Path, default=DEFAULT_REPOSITORY, metavar="REPO", help="compare with its version"
    )
    source.add_argument(
        "--run", type=Path, metavar="RUN", dest="run_path", help="compare with this run; torch answers again"
    )
    parser.add_argument(
        "--version", type=positive, metavar="N", help="version of the repository; the selected one if unset"
    )
    add_model(parser)
    parser.add_argument(
        "--requests", type=not_negative, default=100, metavar="N", help="per batch size; 0 measures nothing"
    )
    parser.add_argument(
        "--concurrency", type=positive, default=32, metavar="N", help="requests at a time under load"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found there")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Compare, measure, tell."""
    from triton_models.remote import RemoteServer
    from triton_models.verify import verify

    with RemoteServer(options.url) as server:
        server.require_live()
        report = verify(
            server,
            _evaluated(options),
            model=options.model,
            requests=options.requests,
            concurrency=options.concurrency,
            tell=say,
        )
    _print(report)
    if options.json is not None:
        write_json(options.json, report.as_json())
        say(f"wrote {options.json}")
    return 0 if report.is_evaluated_model else EXIT_ANOTHER_MODEL


def _evaluated(options: argparse.Namespace) -> Evaluated:
    from triton_models.verify import evaluated_from_repository, evaluated_from_run

    if options.run_path is not None and options.version is not None:
        raise ConfigurationError("--version names a version of --repository; leave it out with --run")
    if options.run_path is None:
        return evaluated_from_repository(options.repository, model=options.model, version=options.version)
    try:
        return evaluated_from_run(options.run_path)
    except ImportError as error:
        raise PutsError(f"verify --run needs {error.name}; pip install 'prl-puts[train]'") from error


def _print(report: VerifyReport) -> None:
    say("")
    served = ", ".join(map(str, report.versions)) or "none"
    say(f"served    {report.model} version {served} at {report.url}")
    say(f"run       {report.run_id or 'unknown'}")
    say(f"surface   {(report.surface_fingerprint or 'unknown')[:12]}")
    if report.largest_difference is not None:
        say(
            f"answers   largest difference {report.largest_difference:.2g} over {report.cases} cases "
            f"(allowed {report.tolerance:g})"
        )
    if report.latency:
        say("")
        say("  batch   p50 ms   p99 ms   queue ms   compute ms   (queue, compute: the server's means)")
        for row in report.latency:
            times = f"{row.p50_ms:>7.2f}  {row.p99_ms:>7.2f}  {row.queue_ms:>9.2f}  {row.compute_ms:>11.2f}"
            say(f"  {row.batch_size:>5}  {times}")
    if report.load is not None:
        load = report.load
        say("")
        say(
            f"load      {load.concurrency} at a time: {load.requests_per_s:.0f} requests/s, "
            f"p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms, queue {load.queue_ms:.2f} ms, "
            f"compute {load.compute_ms:.2f} ms"
        )
        say(
            f"          effective batch size {load.effective_batch_size:.1f} "
            f"({load.inferences} inferences in {load.executions} executions)"
        )
    say("")
    for line in report.failures:
        say(f"failed    {line}")
    for line in report.differences:
        say(f"differs   {line}")
    if report.is_evaluated_model:
        say(f"VERDICT   yes: this is the evaluated model ({report.source})")
    else:
        count = len(report.differences)
        say(f"VERDICT   no: this is not the evaluated model ({report.source}); differences: {count}")
