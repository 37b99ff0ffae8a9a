"""``python -m ray_train join``: decisions and engagement events → an exploration log."""

from __future__ import annotations

import argparse

from ray_train.attribution_options import add_attribution_options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "join",
        help="make an exploration log of the sidecar's decisions and the events that followed",
        description="Attribute events to decisions by request id and time, and write the explored decisions "
        "whose window is over as an exploration log, which validate, fit and sweep read. Everything that "
        "does not get there is counted by reason, on the screen and in OUT/_join.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--surface", required=True, metavar="FILE", help="the control surface (YAML)")
    parser.add_argument("--out", required=True, metavar="LOGS", help="new folder, local or a pyarrow URI")
    add_attribution_options(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Open, join, write, show."""
    from rich.console import Console

    from ray_train.attribution_options import attribution
    from ray_train.cluster import joined_ray
    from ray_train.decisions import open_decisions, open_events
    from ray_train.join_summary import print_counts
    from ray_train.joining import SUMMARY, join
    from ray_train.progress import counting
    from triton_models.surface import load_surface

    surface = load_surface(options.surface)
    rules = attribution(options, surface)
    _, decisions = open_decisions(options.decisions, surface)
    events = open_events(options.events)
    with joined_ray(options.ray_address), counting("joining", "parts") as progress:
        counts = join(
            surface=surface,
            rules=rules,
            decisions=decisions,
            events=events,
            out=options.out,
            bucket_bytes=int(options.bucket_mb * 2**20),
            progress=progress,
        )
    console = Console()
    print_counts(console, rules, counts)
    out = options.out.rstrip("/")
    console.print(f"written: {out} ({counts.rows:,} rows), {SUMMARY}", soft_wrap=True, highlight=False)
