"""``python -m benchmarks gate``: how often the gate passes what it should not."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError

if TYPE_CHECKING:
    from benchmarks.gate_error import Judged

NICE = 10


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "gate",
        help="share of wrong and of right passes of the gate, against exact truth",
        description="Fits small networks on logs of worlds whose truth is known, judges each on several "
        "hold-outs, and counts the passes of networks that are truly below the best static vector.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--feed", default="boards", help="a world of `benchmarks learning`")
    add("--seed", type=int, default=301, help="of the world")
    add("--requests", type=int, default=12_000, help="of the pool")
    add("--rows", type=int, default=30_000, help="of every training log")
    add("--holdout", type=int, default=15_000, help="rows of every hold-out")
    add("--networks", type=int, default=12)
    add("--holdouts", type=int, default=5, help="per network")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for gate-*.json")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Fit, judge, count, write, show."""
    import torch

    from benchmarks.cost.machine import describe_machine
    from benchmarks.feed.config import WorldConfig
    from benchmarks.feed.world import World
    from benchmarks.gate_error import Plan, judge_networks, summary
    from benchmarks.learning.worlds import FEEDS, SURFACES
    from triton_models.files import write_json
    from triton_models.surface import load_surface

    if min(options.rows, options.holdout) < 1000 or min(options.networks, options.holdouts) < 1:
        raise BenchmarkError("logs and hold-outs have at least 1,000 rows; one network and hold-out")
    if options.feed not in FEEDS:
        raise BenchmarkError(f"feed {options.feed!r}: there are {', '.join(FEEDS)}")
    feed = FEEDS[options.feed]
    config = {**feed.settings, "seed": options.seed, "requests": options.requests}
    world = World(WorldConfig.model_validate(config), load_surface(SURFACES / feed.surface))
    os.nice(NICE)
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(options).items() if key not in ("command", "out", "feed")}
    judged = judge_networks(world, Plan(**settings), progress=_tell)
    found = summary(judged)
    rows = [
        {"gain": one.gain, "verdicts": [verdict.model_dump(mode="json") for verdict in one.verdicts]}
        for one in judged
    ]
    file = options.out / f"gate-{options.feed}-{options.seed}-{options.rows}-{options.holdout}.json"
    write_json(
        file,
        {
            "machine": describe_machine(),
            "settings": {"feed": options.feed, **settings},
            **found,
            "networks_judged": rows,
        },
    )
    wrong, right = found["wrong_pass_share"], found["right_pass_share"]
    say(
        f"{found['verdicts']} verdicts on {found['networks']} networks, {found['truly_above']} of them truly "
        f"above the best static vector (mean gain {found['true_gain_mean']:+.2%}): {found['levels']}"
    )
    say(
        f"wrong passes {found['wrong_passes']} ({wrong[0]:.1%} [{wrong[1]:.1%}, {wrong[2]:.1%}], at most "
        f"{found['wrong_pass_share_at_most']:.1%}), right passes {found['right_passes']} ({right[0]:.1%}); "
        f"the interval holds the truth in {found['interval_covers']:.1%}"
    )
    say(f"written: {file}")


def _tell(one: Judged) -> None:
    verdict = one.verdicts[0]
    static = verdict.versus_static
    levels = ", ".join(v.level for v in one.verdicts)
    say(
        f"network {one.network + 1}: truly {one.gain:+.2%}; the first hold-out says {static.estimate:+.2%} "
        f"[{static.low:+.2%}, {static.high:+.2%}], more rows {verdict.more_rows}; {levels}"
    )
