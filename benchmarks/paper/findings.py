"""Is the paper's shape there? One plain sentence per table and figure, decided by stated rules.

The simulated feed is no Pinterest: sizes of effects are its own. What can be reproduced is who gains, in
which direction, in what order, and that offline and online agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from benchmarks.paper import published
from benchmarks.paper.points import EVERYBODY
from benchmarks.paper.settings import OPERATING_POINTS
from benchmarks.paper.summary import Mean, Summary

Verdict = Literal["reproduced", "partly", "not reproduced", "nothing to compare"]

NOTHING = 0.001
"""A true lift within this of zero loses nothing; the paper calls its balanced −0.04 % so."""
TARGET_PEARSON = 0.98
"""L4 of DESIGN.md."""
LITTLE = 0.25
"""A feature group below this share of the best single group carries "little"."""
NEARLY = 0.6
"""A feature group above this share of the best single group carries "nearly as much"."""


@dataclass(frozen=True)
class Finding:
    """One table or figure."""

    item: str
    verdict: Verdict
    sentence: str


def percent(value: float) -> str:
    """A lift for people."""
    return f"{100 * value:+.2f} %".replace("-", "−")


def findings(summary: Summary) -> list[Finding]:
    """All of them, in the order of the page."""
    rules: tuple[Callable[[Summary], Finding], ...] = (
        operating_points,
        correlation,
        cohorts,
        matched_static,
        frontier,
        engagement,
        contributions,
        weight_range,
        ablation,
        chosen_weights,
    )
    return [rule(summary) for rule in rules]


def _judge(*held: bool) -> Verdict:
    return "reproduced" if all(held) else "partly" if any(held) else "not reproduced"


def _truth(summary: Summary, group: str, label: str, outcome: str) -> Mean:
    return summary.lifts[group, label, "truth", outcome]


def operating_points(summary: Summary) -> Finding:
    """From repin-leaning to p2p-leaning repin falls, p2p and sessions rise; the middle loses nothing."""
    one, two = summary.objectives[0], summary.objectives[-1]
    falls = _monotone(summary, one, -1)
    rises = _monotone(summary, two, +1)
    sessions = _monotone(summary, summary.outcomes[len(summary.objectives)], +1)
    middle = [_truth(summary, EVERYBODY, "balanced", name).value for name in summary.objectives]
    paper = published.TABLE_1["balanced"]
    words = " and ".join(f"{name} {percent(x)}" for name, x in zip(summary.objectives, middle, strict=True))
    return Finding(
        "Table 1, operating points",
        _judge(falls and rises, min(middle) > -NOTHING, sessions),
        f"From repin-leaning to p2p-leaning {one} {'falls' if falls else 'does not fall'}, {two} "
        f"{'rises' if rises else 'does not rise'} and sessions {'rise' if sessions else 'do not rise'} in "
        f"every world; all three do so in the paper. The balanced point is truly worth {words}; the paper's "
        f"was {percent(paper.repin[0])} and {percent(paper.p2p[0])} online.",
    )


def _monotone(summary: Summary, outcome: str, sign: int) -> bool:
    series = [_truth(summary, EVERYBODY, label, outcome).worlds for label in OPERATING_POINTS]
    return all(sign * (b - a) > 0 for one, two in pairwise(series) for a, b in zip(one, two, strict=True))


def correlation(summary: Summary) -> Finding:
    """L4."""
    found = {name: summary.correlation["sweep", "online", name] for name in summary.objectives}
    near = {name: summary.correlation["near", "online", name] for name in summary.objectives}
    words = ", ".join(f"{name} {mean.value:.4f}" for name, mean in found.items())
    closer = ", ".join(f"{name} {mean.value:.3f}" for name, mean in near.items())
    paper = ", ".join(f"{name} {r:.3f}" for name, r in published.PEARSON.items())
    held = [mean.value >= TARGET_PEARSON for mean in (*found.values(), *near.values())]
    return Finding(
        "Offline against online",
        _judge(*held),
        f"Offline lifts predict A/B lifts: r over the whole sweep {words}; over the points within 0.1 of the "
        f"balanced α {closer}; the paper has {paper} over three policies. r says nothing about a common "
        "error of all points, which the table has.",
    )


def cohorts(summary: Summary) -> Finding:
    """CORE responds least, CASUAL most."""
    order = sorted(summary.response, key=lambda name: summary.response[name].value)
    words = ", ".join(f"{name} {100 * summary.response[name].value:.1f}" for name in order)
    return Finding(
        "Table 2, cohorts",
        _judge(order[0] == "core", order[-1] == "casual"),
        f"Between the leaning points true lifts move by {words} points (mean of the objectives). In the "
        f"paper {published.COHORTS}. The feed was built with this order; that the policy finds it from logs "
        "is the test.",
    )


def matched_static(summary: Summary) -> Finding:
    """Personalized beats the same average weights for everybody, on every objective, in every world."""
    gains = {
        name: summary.static["balanced", "personalized_over_static", name] for name in summary.objectives
    }
    words = ", ".join(f"{name} {percent(mean.value)}" for name, mean in gains.items())
    held = [min(world) > 0 for world in zip(*(mean.worlds for mean in gains.values()), strict=True)]
    return Finding(
        "Table 3, matched static weights",
        _judge(all(mean.value > 0 for mean in gains.values()), all(held)),
        "At the balanced point the personalized policy is worth more than its own average weights for "
        f"everybody by {words} in the mean, on both objectives in {sum(held)} of {len(held)} worlds; the "
        "paper has +0.12 against −0.24 % (repin) and +0.21 against +0.07 % (p2p).",
    )


def frontier(summary: Summary) -> Finding:
    """A trade-off curve of which some point beats production on every objective."""
    worlds = summary.better.worlds
    some = sum(count > 0 for count in worlds)
    counts = ", ".join(f"{count:.0f}" for count in worlds)
    trade = _monotone(summary, summary.objectives[0], -1) and _monotone(summary, summary.objectives[-1], +1)
    return Finding(
        "Figure 1, frontier",
        _judge(trade, some == len(worlds)),
        "One network and a sweep of α make a curve from repin to p2p; some point of it is truly above "
        f"production on both objectives in {some} of {len(worlds)} worlds ({counts} points).",
    )


def engagement(summary: Summary) -> Finding:
    """More than 80 % with at most one."""
    words = ", ".join(f"{kind} {100 * mean.value:.1f} %" for kind, mean in summary.few.items())
    held = [mean.value > published.FEW_ENGAGEMENTS for mean in summary.few.values()]
    return Finding(
        "Engagement per request",
        _judge(*held),
        f"Requests with at most one engagement under production: {words}; in the paper over 80 %.",
    )


def contributions(summary: Summary) -> Finding:
    """The two controlled heads make up almost 90 %."""
    share = sum(summary.contribution[name].value for name in summary.objectives)
    return Finding(
        "Head contributions (Eq. 11)",
        _judge(0.85 <= share <= 0.95),
        f"The two controlled heads make up {100 * share:.1f} % of production's utility; in the paper almost "
        "90 %.",
    )


def weight_range(summary: Summary) -> Finding:
    """From under 1 % to nearly 50 %."""
    low, high = (mean.value for mean in summary.p2p_range)
    return Finding(
        "Weight range",
        _judge(low < published.P2P_SHARE[0], 0.4 <= high <= 0.6),
        f"From p2p weight 1 to 30 the p2p head's share of utility goes from {100 * low:.1f} to "
        f"{100 * high:.1f} %; in the paper from under 1 % to nearly 50 %.",
    )


def ablation(summary: Summary) -> Finding:
    """User most, history nearly as much, context little."""
    found = {group: mean.value for group, mean in summary.ablation.items()}
    alone = {group: value for group, value in found.items() if group != "all"}
    best = max(alone.values())
    first = max(alone, key=lambda group: alone[group])
    order = first == "user"
    nearly = order and best > 0 and alone["history"] >= NEARLY * best
    little = best > 0 and alone["context"] <= LITTLE * best
    words = ", ".join(f"{group} {value:+.2f}" for group, value in found.items()).replace("-", "−")
    return Finding(
        "Feature groups in isolation",
        _judge(order, nearly, little),
        f"Captured share of the personalization gain (0: the best static vector): {words}; alone {first} "
        f"captures most. In the paper {published.ABLATION}.",
    )


def chosen_weights(summary: Summary) -> Finding:
    """Average weights follow α."""
    one, two = summary.objectives[0], summary.objectives[-1]
    falls, rises = (
        _ordered([summary.static_weights[label, head].value for label in OPERATING_POINTS], sign)
        for head, sign in ((one, -1), (two, 1))
    )
    middle = ", ".join(f"{head} {summary.static_weights['balanced', head].value:.1f}" for head in (one, two))
    return Finding(
        "Chosen weights by α",
        "nothing to compare",
        f"With α the mean {one} weight {'falls' if falls else 'does not fall'} and the mean {two} weight "
        f"{'rises' if rises else 'does not rise'}; the balanced point's means are {middle}. Of the paper "
        "only one mean is at hand (p2p 11.83).",
    )


def _ordered(values: list[float], sign: int) -> bool:
    return all(sign * (b - a) > 0 for a, b in pairwise(values))
