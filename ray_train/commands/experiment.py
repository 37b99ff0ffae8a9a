"""``python -m ray_train experiment``: what the arms of an A/B test did, and whether that was predicted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ray_train.attribution_options import add_attribution_options

if TYPE_CHECKING:
    from ray_train.experiment_report import Experiment


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "experiment",
        help="lifts of an A/B test's arms, with checks, beside what the frontier predicted",
        description="Attribute events to decisions that did not explore, and compare every arm with the "
        "control: lifts with intervals clustered by user, for everybody, by cohort and by policy version; "
        "sample-ratio check; guardrails; predictions of the frontier. Writes OUT/experiment.json and "
        "OUT/experiment.html.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="folder of the report; made if need be")
    add("--surface", metavar="FILE", help="the control surface; default: the one in the decision files")
    add("--frontier", metavar="FILE", help="frontier.json, or a run's folder, for the predictions")
    add("--control", metavar="ARM", help="the control arm; default: the one that was always static")
    add(
        "--shares",
        action="append",
        default=[],
        metavar="[VERSION:]ARM=SHARE,...",
        help="declared shares of the users, of every policy version or of one; may be repeated",
    )
    add(
        "--guardrail",
        action="append",
        default=[],
        metavar="NAME>=LIFT",
        help="limit of an outcome's lift, such as 'successful_session>=-0.01' or 'hide<=2%%'; repeatable",
    )
    add("--confidence", type=float, default=0.95, help="confidence of each interval")
    add(
        "--report-to",
        metavar="URL",
        help="sidecar to tell the lifts under the latest policy version, for its guardrail watch",
    )
    add("--report-arm", metavar="ARM", help="whose lifts to tell it; needed with more than one treatment arm")
    add("--token-file", metavar="FILE", help="file with the operator token for --report-to")
    add_attribution_options(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Analyse, write, show, report."""
    from rich.console import Console

    from ray_train.experiment_page import PAGE, render_experiment
    from ray_train.experiment_report import EXPERIMENT, write_experiment
    from ray_train.experiment_table import print_experiment
    from ray_train.guardrail_reports import prepare_reporting
    from triton_models.files import write_atomically

    send = prepare_reporting(options.report_to, options.token_file, options.report_arm)
    experiment = _analyse(options)
    page = render_experiment(experiment)
    out = Path(options.out)
    (out / PAGE).unlink(missing_ok=True)  # never the page of an earlier analysis beside this one
    write_experiment(out / EXPERIMENT, experiment)
    write_atomically(out / PAGE, page)
    console = Console()
    print_experiment(console, experiment)
    for name in (EXPERIMENT, PAGE):
        console.print(f"written: {out / name}", soft_wrap=True, highlight=False)
    if send is not None:
        console.print(send(experiment), soft_wrap=True, highlight=False, markup=False)


def _analyse(options: argparse.Namespace) -> Experiment:
    from ray_train.attribution_options import attribution
    from ray_train.cluster import joined_ray
    from ray_train.decisions import Reader, open_decisions, open_events
    from ray_train.experiment import analyse
    from ray_train.experiment_design import read_design
    from ray_train.experiment_options import settings
    from ray_train.experiment_sums import PAYLOAD, experiment_sums
    from ray_train.partitions import bucket_count
    from ray_train.progress import counting
    from triton_models.frontier import load_frontier
    from triton_models.surface import load_surface

    chosen = settings(options)
    given = load_surface(options.surface) if options.surface else None
    surface, decisions = open_decisions(options.decisions, given)
    rules = attribution(options, surface)
    events = open_events(options.events)
    frontier = load_frontier(options.frontier) if options.frontier else None
    if frontier is not None:
        surface.require_same(frontier.surface_object, this="the decisions", that=options.frontier)
    design = read_design(surface, decisions, rules, options.control)
    chosen.require_known(surface, design)  # before the long work
    reader = Reader(
        surface=surface,
        decisions=decisions,
        events=events,
        payload=PAYLOAD,
        payload_if_explored=False,
        buckets=bucket_count(decisions, events, bucket_bytes=int(options.bucket_mb * 2**20)),
    )
    with joined_ray(options.ray_address), counting("analysing", "parts") as progress:
        sums = experiment_sums(reader, rules, design, confidence=chosen.confidence, progress=progress)
    return analyse(
        surface=surface,
        design=design,
        sums=sums,
        rules=rules,
        settings=chosen,
        frontier=frontier,
        decisions=options.decisions,
        events=options.events,
    )
